#!/bin/bash
# A real systemd, PID 1 of namespaces of its own: nothing of it touches this machine. `systemd.sh CGROUP`, as root;
# it runs until it is killed. Units: /etc/systemd/system; /etc, /var and /run are what is here now plus changes that are
# forgotten.
set -eu
group=$1

# its processes are to have a control group that may be cut up further: in each hierarchy (v1), or the one there is (v2)
if [ -e /sys/fs/cgroup/cgroup.procs ]; then version=2; hierarchies=/sys/fs/cgroup; else version=1; hierarchies=$(ls -d /sys/fs/cgroup/*/); fi
for hierarchy in $hierarchies; do
  [ -w "$hierarchy/cgroup.procs" ] || continue
  mkdir -p "$hierarchy/$group"
  if [ $version = 1 ] && [ -e "$hierarchy/cpuset.cpus" ]; then
    for file in cpuset.cpus cpuset.mems; do cat "$hierarchy/$file" > "$hierarchy/$group/$file"; done
  fi
  echo $$ > "$hierarchy/$group/cgroup.procs"
done

export version
exec unshare --fork --kill-child=SIGKILL --pid --mount --propagation private --cgroup --ipc --uts bash -euc '
  mount --make-rshared /  # as on a machine of its own, but without a peer outside
  mount -t proc proc /proc
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/lock /run/systemd/system
  for folder in etc var; do
    mkdir -p /run/changed/$folder/{upper,work}
    mount -t overlay overlay -o lowerdir=/$folder,upperdir=/run/changed/$folder/upper,workdir=/run/changed/$folder/work /$folder
  done
  mount -t tmpfs -o mode=755 tmpfs /etc/systemd/system
  umount -R /sys/fs/cgroup
  if [ $version = 2 ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
  else
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
    for controller in cpu cpuacct memory pids; do
      mkdir /sys/fs/cgroup/$controller
      mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller
    done
    mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
  fi
  for unit in sysinit.target basic.target shutdown.target slices.target sockets.target timers.target paths.target \
      network.target multi-user.target systemd-journald.{service,socket} systemd-journald-dev-log.socket; do
    cp /lib/systemd/system/$unit /run/systemd/system/
  done
  mkdir /run/systemd/system/multi-user.target.wants
  ln -s ../systemd-journald.service /run/systemd/system/multi-user.target.wants/
  exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin container=test \
    SYSTEMD_UNIT_PATH=/etc/systemd/system:/run/systemd/system SYSTEMD_LOG_TARGET=journal \
    /lib/systemd/systemd --system --unit=multi-user.target --show-status=no
'
