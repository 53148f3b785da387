#!/usr/bin/env bash
# kernel.sh WORK OUT: write `vmlinuz` and `initramfs` in OUT. Debian's smallest kernel, and OpenZFS as a module, built
# from Debian's source for it. The initramfs holds the modules that the machine needs, and mounts the rest of it (vm/init).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$1/root out=$2
. "$here/apt.sh"

echo "installing the compiler"
make_root "$root" linux-image-cloud-amd64,linux-headers-cloud-amd64,gcc,libc6-dev,make,bc,kmod,busybox-static,cpio,zstd \
    --customize-hook='mkdir "$1/build" && chroot "$1" sh -ec "
        cd /build
        apt-get download -qq -t '$release'-backports zfs-dkms
        dpkg-deb -x zfs-dkms_*.deb zfs"'
version=$(cd "$root/lib/modules" && echo *)

softly chroot "$root" bash -euo pipefail -s "$version" << 'EOS'
version=$1 headers=/usr/src/linux-headers-$1
quietly() { "$@" > /build/log 2>&1 || { tail -n 50 /build/log; exit 1; }; }

cd /build/zfs/usr/src/zfs-*
echo "configuring OpenZFS"
quietly ./configure --with-config=kernel --with-linux="$headers" --with-linux-obj="$headers"
echo "compiling OpenZFS"
quietly make -s -C module -j"$(nproc)"
mkdir -p "/lib/modules/$version/extra" /build/initramfs/{bin,dev,proc,sys,new,modules}
find module -name '*.ko' -exec cp {} "/lib/modules/$version/extra/" \;
strip --strip-debug "/lib/modules/$version"/extra/*.ko
depmod "$version"

cp /bin/busybox /build/initramfs/bin/
modprobe --set-version "$version" --show-depends --all virtio_pci virtio_blk squashfs overlay virtiofs zfs |
    sed -n 's/^insmod //p' | awk '!seen[$1]++' |
    while read -r module; do
        cp "$module" /build/initramfs/modules/
        basename "$module"
    done > /build/order
mv /build/order /build/initramfs/modules/
EOS
install -m 755 "$here/init" "$root/build/initramfs/init"
chroot "$root" sh -ec 'cd /build/initramfs; find . | cpio --quiet -o -H newc | zstd -q -19 > /build/initramfs.cpio.zst'
cp "$root/build/initramfs.cpio.zst" "$out/initramfs"
cp "$root/boot/vmlinuz-$version" "$out/vmlinuz"
