#!/usr/bin/env bash
# root.sh WORK OUT: write `root.squashfs` in OUT. A small Debian with all that the tests need beside the project: OpenZFS's
# programs and its binding for Python (both of the version of the module), PostgreSQL, ZooKeeper, Python.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1/root out=$2
. "$here/apt.sh"

echo "installing packages"
make_root "$root" \
    zfsutils-linux,python3-pyzfs,python3,postgresql-15,libzookeeper-java,libslf4j-java,default-jre-headless,mount,procps,iproute2 \
    --setup-hook='printf "Package: src:zfs-linux\nPin: release n='$release'-backports\nPin-Priority: 900\n" \
        | install -D -m 644 /dev/stdin "$1/etc/apt/preferences.d/zfs"' \
    --customize-hook='rm -rf "$1"/var/lib/postgresql/15 "$1"/etc/postgresql/15' # a database that nobody asked for

# Not needed to run: PostgreSQL's compiler of expressions, which does without where it is missing, and what apt has left.
rm -rf "$root"/usr/lib/x86_64-linux-gnu/libLLVM* "$root"/usr/lib/postgresql/15/lib/{llvmjit*,bitcode} \
    "$root"/etc/apt "$root"/var/lib/apt "$root"/var/cache "$root"/usr/share/maven-repo "$root"/usr/share/i18n
# Under emulation, quick to unpack is worth more than small.
echo "packing"
softly mksquashfs "$root" "$out/root.squashfs" -comp lz4 -quiet -no-progress -noappend
