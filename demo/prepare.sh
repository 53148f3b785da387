#!/usr/bin/env bash
# Installs what is missing to run this checkout, and says what before it does: Debian's packages for ZooKeeper and
# Python's venv, then the Python packages of requirements.lock and this project into .venv.
#
# prepare.sh zfs: also a ZFS, where the machine has none and can run one outside of its kernel.
# prepare.sh vm: also what builds and runs the virtual machine of `make test-zfs`.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv

say() { printf '\n==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The first Python that is new enough; with `venv`, one that can also make a virtual environment.
find_python() {
    local python check='import sys; assert sys.version_info >= (3, 11)'
    [ "${1-}" != venv ] || check+='; import ensurepip, venv'
    for python in python3 python3.11 python3.12 python3.13 python3.14 /usr/bin/python3; do
        if command -v "$python" > /dev/null && "$python" -c "$check" 2> /dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

install_packages() {
    [ $# -gt 0 ] || return 0
    command -v apt-get > /dev/null || fail "please install what Debian calls: $*"
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
    if [ "$(id -u)" != 0 ]; then
        command -v sudo > /dev/null || fail "as root, please run: apt-get install $*"
        apt=(sudo "${apt[@]}")
    fi
    say "Installing Debian packages: $* (${apt[*]} install)"
    "${apt[@]}" update -q
    "${apt[@]}" install -q -y --no-install-recommends "$@"
}

missing=()
command -v java > /dev/null || missing+=(default-jre-headless)
# Not `zookeeper`, which would start a server of its own and needs a Java with graphics.
[ -e /usr/share/java/zookeeper.jar ] || missing+=(libzookeeper-java)
[ -e /usr/share/java/slf4j-simple.jar ] || missing+=(libslf4j-java)
[ -x $venv/bin/python ] || find_python venv > /dev/null || missing+=(python3-venv)
if [[ " $* " == *" zfs "* ]] && [ "$(id -u)" = 0 ] && [ -e /dev/fuse ]; then
    PATH=$PATH:/usr/sbin:/sbin command -v zpool > /dev/null || missing+=(zfs-fuse)
fi
if [[ " $* " == *" vm "* ]]; then
    command -v qemu-system-x86_64 > /dev/null || missing+=(qemu-system-x86)
    [ -x /usr/lib/qemu/virtiofsd ] || missing+=(qemu-system-common)
    command -v mmdebstrap > /dev/null || missing+=(mmdebstrap)
    command -v mksquashfs > /dev/null || missing+=(squashfs-tools)
fi
# For `make chaos`, which root alone can run.
if [ "$(id -u)" = 0 ]; then
    command -v ip > /dev/null || missing+=(iproute2)
    command -v nft > /dev/null || missing+=(nftables)
    [ -n "$(echo /usr/lib/*/faketime/libfaketime.so.1 | grep -v '\*')" ] || missing+=(libfaketime)
fi
install_packages "${missing[@]}"

# A virtual environment works in the place that it was made for, and with the Python that made it.
if [ -e $venv ] && { [ "$(cat $venv/.place 2> /dev/null)" != "$PWD" ] || ! $venv/bin/python -c '' 2> /dev/null; }; then
    say "Removing $venv: it was made elsewhere, or its Python is gone"
    rm -rf $venv
fi
wanted=$(cat requirements.lock pyproject.toml | sha256sum)
if [ "$(cat $venv/.installed 2> /dev/null)" != "$wanted" ]; then
    python=$(find_python venv) || fail "Python 3.11 or newer is needed, with its venv module"
    say "Installing $(grep -c '==' requirements.lock) Python packages, as pinned in requirements.lock, into $venv"
    [ -e $venv ] || "$python" -m venv $venv
    printf '%s\n' "$PWD" > $venv/.place
    pip=($venv/bin/python -m pip --disable-pip-version-check install --no-deps)
    "${pip[@]}" --require-hashes -r requirements.lock
    "${pip[@]}" --no-build-isolation -q -e .
    printf '%s\n' "$wanted" > $venv/.installed
fi
