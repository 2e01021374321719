# What every command of slurm/sandbox needs: names, errors, waiting.
# shellcheck shell=bash

readonly network=10.213.77               # .1 is the machine itself, .2 the controller, .11 and on are the nodes
readonly control=slurm-control           # the host of slurmctld, slurmdbd, MariaDB and munged
readonly login_device=refbert-sandbox    # the machine's own link into the cluster; a name has 15 letters at most
readonly slurm_conf=$root/etc/slurm.conf
readonly slurm_link=/etc/slurm/slurm.conf
readonly packages_file=$root/installed-packages    # also the sign that this folder is ours to empty

# What the caller had set; from here on every program of SLURM gets ours.
readonly callers_slurm_conf=${SLURM_CONF-}
export SLURM_CONF=$slurm_conf

started_us=${EPOCHREALTIME/./}

complain() { echo "slurm/sandbox: $1" >&2; }

# It ran, and the answer is no.
die() {
  complain "$1"
  exit 1
}

# The command line is wrong.
misuse() {
  complain "$1"
  exit 2
}

# The paths of munge's and MariaDB's sockets, which start with it, may have 107 letters.
[[ $root =~ ^/[A-Za-z0-9._/-]{1,79}$ ]] ||
  misuse "REFBERT_SANDBOX_ROOT is '$root'; give an absolute path of at most 80 letters, digits and . _ - /"

need_root() { ((EUID == 0)) || die "this needs root; put sudo before it."; }

# Print a line with the time since the start.
say() {
  local us=$((${EPOCHREALTIME/./} - started_us))
  printf '%3d.%02d s  %s\n' $((us / 1000000)) $((us / 10000 % 100)) "$1"
}

refuse_inside_a_job() {
  [[ -z ${SLURM_JOB_ID-} ]] || die "this is inside the SLURM job $SLURM_JOB_ID; run it outside of jobs."
}

# Try COMMAND every 50 ms until it succeeds; fails after so many SECONDS.
wait_for() { # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS <= end)) || return 1
    sleep 0.05
  done
}

# One at a time may make or end the cluster. The lock is on a folder that is there anyway, so that no file stays behind.
# What lives on is started with 9<&-, or it would hold the lock for ever.
lock() {
  local parent
  parent=$(dirname "$root")
  [[ -d $parent ]] || die "there is no folder $parent; make it, or name another folder in REFBERT_SANDBOX_ROOT."
  exec 9<"$parent"
  flock 9
}

# Does the controller of our own cluster answer? Without its network, to ask would be to wait.
controller_answers() {
  ip link show "$login_device" >/dev/null 2>&1 && timeout 5 scontrol ping 2>/dev/null | grep -q ' UP$'
}

accounting_answers() { timeout 5 sacctmgr -n show cluster >/dev/null 2>&1; }

# The nodes that run jobs or could.
usable_nodes() {
  timeout 5 sinfo -h -N -p main -o '%N %t' 2>/dev/null | awk '$2 ~ /^(idle|alloc|mix|comp|plnd)-?$/ { print $1 }'
}

node_usable() { usable_nodes | grep -qx "$1"; }
