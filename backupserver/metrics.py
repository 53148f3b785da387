"""What the backup server tells Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from backupserver.stream import Transfer


class Metrics:
    """`under_way` gives the transfers that are running, as often as it is asked."""

    def __init__(self, under_way: Callable[[], Sequence[Transfer]]) -> None:
        self._registry = CollectorRegistry()
        self._under_way = under_way
        self._sent_by_ended = 0
        ProcessCollector(registry=self._registry)
        self._registry.register(self)
        self.finished = Counter(
            "manatee_backup_transfers", "Snapshots sent, by outcome", ["outcome"], registry=self._registry
        )
        self.refused = Counter(
            "manatee_backup_refusals", "Requests refused, by reason", ["reason"], registry=self._registry
        )

    def ended(self, transfer: Transfer) -> None:
        """It is no longer under way."""
        self._sent_by_ended += transfer.bytes

    def collect(self) -> Iterator[Metric]:
        """What is known at the moment of asking; for the registry."""
        running = self._under_way()
        moved = sum(transfer.bytes for transfer in running)
        expected = sum(max(transfer.size or 0, transfer.bytes) for transfer in running)
        for name, what, value in (
            ("manatee_backup_streams", "Snapshots being sent now", len(running)),
            ("manatee_backup_streams_bytes", "Bytes that the snapshots being sent now have moved so far", moved),
            ("manatee_backup_streams_expected_bytes", "Bytes that they will have in all, by estimate", expected),
        ):
            yield GaugeMetricFamily(name, what, value=float(value))
        yield CounterMetricFamily(
            "manatee_backup_sent_bytes", "Bytes of snapshots sent", value=float(self._sent_by_ended + moved)
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
