#!/bin/bash
# What the virtual machine does once vm/init has put it together: run the tests that it was started for, tell their exit
# status over the second serial line, and end. As the first process it also reaps what nobody else waits for.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb
export PYTHONPATH=/python:/checkout PYTHONUNBUFFERED=1
# Emulated: tests that wait for whole shards multiply their patience.
export MANATEE_SLOWNESS=4

end() { echo "$1" > /dev/ttyS1; echo 0 > /proc/sys/kernel/printk; sync; echo b > /proc/sysrq-trigger; sleep 60; }
trap 'end 1' EXIT

mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs -o mode=1777 tmpfs $directory; done
chmod 666 /dev/zfs # as OpenZFS's rule for udev has it: who may do what is a matter of zfs allow
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

# While pytest says nothing: every ten seconds a line, so that who watches knows that the machine is alive (its seconds
# last longer where it has to share the processor), and every two minutes all there is to know of what may hang.
said=/run/said
touch $said
watch() {
    local told=0 silent load free
    while sleep 10; do
        silent=$((EPOCHSECONDS - $(stat -c %Y $said)))
        [ $silent -ge 20 ] || { told=0; continue; }
        read -r load _ < /proc/loadavg
        free=$(</proc/meminfo) free=${free#*MemAvailable:}
        read -r free _ <<< "$free"
        echo "... nothing for $silent s; load $load, $((free / 1024)) MB free"
        [ $((silent / 120)) -gt $told ] || continue
        told=$((silent / 120))
        tell
    done
}
tell() {
    echo "... processes:"
    ps -eo pid,ppid,stat,time,wchan:24,args --sort=pid | awk '$2 != 2 && $1 != 2' | cut -c1-180
    for log in /tmp/manatee-*/peer*/*.log; do
        [ ! -e "$log" ] || { echo "... $log"; tail -n 5 "$log" | cut -c1-300; }
    done
    echo w > /proc/sysrq-trigger
    echo "... the kernel, with whoever is blocked in it:"
    dmesg | tail -n 80
}

read -r up _ < /proc/uptime
echo "==> Linux $(uname -r), OpenZFS $(cat /sys/module/zfs/version), ready $up s after its start"
words=$(sed -n 's/.*\bmanatee\.tests=\([^ ]*\).*/\1/p' /proc/cmdline | base64 -d)
cd /checkout || exit
# Through a pipe: what pytest writes for a terminal would be noise where this is recorded.
setsid bash -o pipefail -c "python3 -m pytest -p no:cacheprovider -p vm.at_once --tb short --timeout 300 $words 2>&1 | tee $said" &
tests=$!
watch &
wait $tests
end $?
