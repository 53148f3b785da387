#!/bin/bash
# What the virtual machine does once vm/init has put it together: run the tests that it was started for, tell their exit
# status over the second serial line, and end. As the first process it also reaps what nobody else waits for.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
export PYTHONPATH=/python:/checkout PYTHONUNBUFFERED=1
# Emulated: tests that wait for whole shards multiply their patience.
export MANATEE_SLOWNESS=8

end() { echo "$1" > /dev/ttyS1; echo 0 > /proc/sys/kernel/printk; sync; echo b > /proc/sysrq-trigger; sleep 60; }
trap 'end 1' EXIT

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs -o mode=1777 tmpfs $directory; done
ip link set lo up
hostname manatee

# The project's programs stand where those of an installed one would.
python3 - <<'PYTHON'
import pathlib, tomllib

scripts = tomllib.loads(pathlib.Path("/checkout/pyproject.toml").read_text())["project"]["scripts"]
for name, place in scripts.items():
    module, function = place.split(":")
    path = pathlib.Path("/usr/bin", name)
    path.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    path.chmod(0o755)
PYTHON

read -r up _ < /proc/uptime
echo "==> Linux $(uname -r), OpenZFS $(cat /sys/module/zfs/version), ready $up s after its start"
words=$(sed -n 's/.*\bmanatee\.tests=\([^ ]*\).*/\1/p' /proc/cmdline | base64 -d)
cd /checkout || exit
# Through a pipe: what pytest writes for a terminal would be noise where this is recorded.
setsid bash -o pipefail -c "python3 -m pytest -p no:cacheprovider --timeout 300 $words 2>&1 | cat" &
wait $!
end $?
