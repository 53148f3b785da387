# Sourced by what builds the virtual machine: roots of Debian 12, from the mirrors that this machine's apt is configured
# to use, with the sections and suites that a real OpenZFS needs on top. Nothing of it touches this machine's own apt.

release=bookworm

# Run a command that takes both cores for minutes, so that nobody notices.
softly() { nice -n 15 "$@"; }

# The mirror of a Debian archive, by the label in its Release file.
mirror() {
    apt-get indextargets --format '$(LABEL)|$(REPO_URI)' 'Created-By: Packages' 2> /dev/null |
        sed -n "s/^$1|//p" | sort -u | head -n 1
}

sources() {
    local debian security
    [ -n "$(mirror Debian)" ] || apt-get update -q >&2
    debian=$(mirror Debian) security=$(mirror Debian-Security)
    [ -n "$debian" ] || { echo "error: apt on this machine knows no mirror of Debian: see /etc/apt/sources.list.d" >&2; return 1; }
    printf 'deb %s %s main contrib\n' "$debian" $release "$debian" $release-updates "$debian" $release-backports
    [ -z "$security" ] || printf 'deb %s %s main contrib\n' "$security" $release-security
}

# make_root DIRECTORY PACKAGES [MMDEBSTRAP OPTION...]
make_root() {
    local root=$1 packages=$2 settings=$1.apt.conf
    shift 2
    apt-config dump Acquire > "$settings" # proxies and the like
    sources | softly mmdebstrap --quiet --mode=root --variant=apt --aptopt="$settings" --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/info/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        "$@" $release "$root" -
}
