# The simulated hosts. Each is a network, UTS, PID and mount namespace and lives as long as its init: when that is
# killed, the kernel kills every process of the host and removes its network, so nothing can be left over.
# The switch between the hosts is a bridge in the controller's namespace: no firewall of the machine sees their traffic.
# shellcheck shell=bash

# Adopts and reaps orphans. The arguments that follow it are what a host is found by, whoever started it and when.
readonly init='while :; do sleep infinity & wait $!; done'

# The process id of a host's init, or nothing. The oldest, for a fork of it is its double until it becomes `sleep`.
init_pid() { # HOST
  pgrep -U 0 -o -fx "bash -c .* refbert-sandbox $root $1" 2>/dev/null || true
}

is_on() { [[ -n $(init_pid "$1") ]]; }

is_off() { ! is_on "$1"; }

# Kill every host, also one that is being made just now; succeeds once there is none.
kill_all_hosts() {
  local pids
  pids=$(pgrep -U 0 -fx "(setsid|unshare|bash) .* refbert-sandbox $root [a-z0-9-]+" 2>/dev/null) || return 0
  xargs kill -9 <<<"$pids" 2>/dev/null
  return 1
}

need_power() { is_on "$1" || die "$1 is off; switch it on with: slurm/sandbox node boot $1"; }

# Run a command on a host, in the folder /. --root: where all this runs in a chroot, the host's root is there as well.
inside() { # HOST COMMAND...
  nsenter --target "$(init_pid "$1")" --net --uts --pid --mount --root --wdns=/ -- "${@:2}" 9<&-
}

# Run a command of the machine in a host's network, to turn its knobs from outside.
on_network_of() { # HOST COMMAND...
  nsenter --target "$(init_pid "$1")" --net -- "${@:2}" 9<&-
}

switch_on() { # HOST
  # --propagation slave: what the machine mounts later appears on the hosts as well
  setsid --fork unshare --net --uts --pid --mount --propagation slave --fork --kill-child --mount-proc \
    bash -c "$init" refbert-sandbox "$root" "$1" </dev/null >/dev/null 2>&1 9<&-
  wait_for 10 is_on "$1" || die "the host $1 could not be made."
  # Names come from /etc/hosts alone, whatever the machine has: to wait for a DNS out of reach can take seconds.
  # shellcheck disable=SC2016
  inside "$1" bash -euc '
    hostname "$1"
    mount -t sysfs sysfs /sys
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    mount --bind "$2/etc/nsswitch.conf" /etc/nsswitch.conf
    ip link set lo up' bash "$1" "$root"
}

# Power off at once. The cable first: a crash looks like silence to its peers, not like closed connections.
switch_off() { # HOST
  on_network_of "$control" ip link del "$1"
  kill -9 "$(init_pid "$1")"
  wait_for 10 is_off "$1"
}

# Give a device its address in the cluster. quickack: SLURM writes small pieces and waits for each, which would take
# 40 ms apiece, and half a second for every sacctmgr.
plug_in() { # DEVICE NUMBER [PREFIX...]
  "${@:3}" ip -batch - <<END
addr add $network.$2/24 dev $1 noprefixroute
link set $1 up
route add $network.0/24 dev $1 quickack 1
END
}

# The controller's host, with the switch, and the machine plugged into it.
switch_on_control() {
  switch_on "$control"
  on_network_of "$control" ip link add switch type bridge forward_delay 0
  on_network_of "$control" ip link add login up master switch type veth peer name "$login_device" netns $$
  plug_in switch 2 on_network_of "$control"
  plug_in "$login_device" 1
  on_network_of "$control" ip route change local "$network.2" dev switch table local quickack 1
}

switch_on_node() { # NODE
  switch_on "$1"
  on_network_of "$control" ip link add "$1" up master switch type veth peer name eth0 netns "$(init_pid "$1")"
  plug_in eth0 $((10 + ${1#n})) on_network_of "$1"
}

# The process id of a node's slurmd, seen from the machine.
slurmd_pid() { pgrep -o -x slurmd --ns "$(init_pid "$1")" --nslist pid || true; }

start_slurmd_node() {
  need_power "$1"
  [[ -n $(slurmd_pid "$1") ]] || inside "$1" slurmd
}

kill_slurmd_node() {
  need_power "$1"
  local pid
  pid=$(slurmd_pid "$1")
  [[ -n $pid ]] || die "no slurmd runs on $1; start it with: slurm/sandbox node start-slurmd $1"
  kill -9 "$pid"
}

crash_node() {
  need_power "$1"
  switch_off "$1"
}

cut_node() {
  need_power "$1"
  on_network_of "$control" ip link set "$1" down
}

heal_node() {
  need_power "$1"
  on_network_of "$control" ip link set "$1" up
  local pid
  pid=$(slurmd_pid "$1")
  # slurmd registers again now, and not only when the controller's next ping reaches it
  [[ -z $pid ]] || kill -HUP "$pid"
}

boot_node() {
  if is_off "$1"; then
    # A real machine reports when it booted, and so the controller knows that its jobs are gone; this one cannot.
    scontrol update nodename="$1" state=down reason=crashed
    switch_on_node "$1"
  fi
  heal_node "$1"
  start_slurmd_node "$1"
  wait_for 40 node_usable "$1" ||
    die "$1 does not come back; see $root/log/slurmd.$1.log and \`scontrol show node $1\`."
}
