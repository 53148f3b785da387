"""How long no write is acknowledged after something happened to a cluster: this project beside Patroni."""
