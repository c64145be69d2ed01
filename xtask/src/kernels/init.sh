#!/usr/bin/busybox sh
# PID 1 of a guest: runs what /jobs lists, and tells how each ended in lines that begin with "@@".

/usr/bin/busybox mkdir -p /busybox /proc /sys /dev /run /tmp /var
/usr/bin/busybox --install -s /busybox
# The real programs first: the tests read what iputils' ping prints, not busybox's.
export PATH=/usr/local/sbin:/usr/sbin:/usr/bin:/busybox HOME=/ LANG=C.UTF-8

mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ln -s /run /var/run
ip link set lo up
ulimit -n 65536
echo 3 >/proc/sys/kernel/printk

echo "@@ booted $(uname -r)"
while read -r name env program arguments; do
    echo "@@ begin $name"
    # shellcheck disable=SC2086
    env RUST_BACKTRACE=0 $(echo "$env" | tr , ' ') "$program" $arguments </dev/null 2>&1
    echo "@@ end $name $?"
done </jobs
# What a program of ours may never make a kernel say.
dmesg | grep -E 'WARNING: |BUG: |Oops|general protection|hung task|refcount_t' | sed 's/^/@@ kernel /'
echo "@@ done"
poweroff -f
