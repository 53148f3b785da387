#!/usr/bin/env bash
# kernel.sh WORK OUT: write `vmlinuz` and `initramfs` in OUT. Debian's smallest kernel, and OpenZFS as a module, built from
# Debian's source for it. The initramfs holds the modules that the machine needs, and mounts the rest of it (vm/init).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1/root out=$2
. "$here/apt.sh"

make_root "$root" linux-image-cloud-amd64,linux-headers-cloud-amd64,gcc,libc6-dev,make,bc,kmod,busybox-static,cpio,zstd \
    --customize-hook='chroot "$1" sh -ec "
        cd /tmp
        apt-get download -q -t '$release'-backports zfs-dkms
        dpkg-deb -x zfs-dkms_*.deb zfs"'
version=$(cd "$root/lib/modules" && echo *)

softly chroot "$root" bash -euo pipefail -c '
    cd /tmp/zfs/usr/src/zfs-*
    run() { "$@" > /tmp/log 2>&1 || { tail -n 50 /tmp/log >&2; exit 1; }; }
    headers=/usr/src/linux-headers-'"$version"'
    run ./configure --with-config=kernel --with-linux=$headers --with-linux-obj=$headers
    run make -s -C module -j"$(nproc)"
    mkdir -p /lib/modules/'"$version"'/extra
    find module -name "*.ko" -exec cp {} /lib/modules/'"$version"'/extra/ \;
    strip --strip-debug /lib/modules/'"$version"'/extra/*.ko
    depmod '"$version"'

    mkdir -p /initramfs/{bin,dev,proc,sys,new,modules}
    cp /bin/busybox /initramfs/bin/
    modprobe --set-version '"$version"' --show-depends --all virtio_pci virtio_blk squashfs overlay virtiofs zfs |
        sed -n "s/^insmod //p" | awk "!seen[\$1]++" > /tmp/modules
    while read -r module; do
        cp "$module" /initramfs/modules/
        basename "$module" >> /initramfs/modules/order
    done < /tmp/modules
'
install -m 755 "$here/init" "$root/initramfs/init"
chroot "$root" sh -ec 'cd /initramfs; find . | cpio --quiet -o -H newc | zstd -q -19 > /tmp/initramfs'
cp "$root/tmp/initramfs" "$out/initramfs"
cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
