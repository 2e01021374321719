# slurm/sandbox up: make the cluster, or see that it is there.
# shellcheck shell=bash

refuse_other_slurm() {
  local conf pid
  for conf in /etc/slurm*/slurm.conf; do
    [[ ! -e $conf && ! -L $conf ]] || [[ $(readlink "$conf") == "$slurm_conf" ]] ||
      die "this machine has another SLURM, configured in $conf, and the sandbox keeps off it."
  done
  [[ -z $callers_slurm_conf || $callers_slurm_conf == "$slurm_conf" || $callers_slurm_conf == "$slurm_link" ]] ||
    die "SLURM_CONF is set to $callers_slurm_conf, another SLURM; unset it, or keep off this machine."
  # ours run in PID namespaces of their own, as those in containers do, which are no business of the sandbox
  for pid in $(grep -lxsE 'slurm(ctld|dbd|d)' /proc/[0-9]*/comm | cut -d/ -f3); do
    [[ ! /proc/$pid/ns/pid -ef /proc/$$/ns/pid ]] ||
      die "this machine has another SLURM, running as process $pid, and the sandbox keeps off it."
  done
  [[ ! -d $root || -e $packages_file || -z $(ls -A "$root") ]] ||
    die "$root holds other files; empty it, or name another folder in REFBERT_SANDBOX_ROOT."
}

need_namespaces() {
  unshare --net --uts --pid --mount --fork --kill-child --mount-proc mount -t sysfs sysfs /sys 2>/dev/null ||
    die "root may not make the network namespaces that the sandbox needs (in a container: start it with --privileged)."
}

# Up with the wanted settings, and nothing broken?
in_order() {
  [[ -e $root/settings && $(<"$root/settings") == "$wanted" ]] && controller_answers && accounting_answers || return 1
  local i
  for ((i = 1; i <= nodes; i++)); do is_on "n$i" || return 1; done
  all_usable
}

# A part did not start: show why, before its log goes the way of everything.
fail() { # SENTENCE LOG
  tail -n 20 "$root/log/$2.log" >&2 || true
  die "$1"
}

# Leaving before the end, whatever the reason.
abort() {
  trap '' HUP INT TERM
  jobs -p | xargs -r kill 2>/dev/null || true
  wait
  complain "up did not finish; what it had begun is taken back."
  take_down
  remove_folder
}

write_configuration() {
  mkdir -p "$root"/{etc,log,run,state,spool,dev,mysql}
  chmod 755 "$root"
  chmod 700 "$root/state"
  local gres='' gpu
  : >"$root/etc/gres.conf"
  if ((gpus)); then
    # counted GPUs must be character devices; these are copies of /dev/null
    for ((gpu = 0; gpu < gpus; gpu++)); do mknod "$root/dev/gpu$gpu" c 1 3; done
    echo "Name=gpu File=$root/dev/gpu[0-$((gpus - 1))]" >"$root/etc/gres.conf"
    gres=Gres=gpu:$gpus
  fi
  # submitit names result files by job id: a cluster that counts from 1 again would find the last one's results
  local first_job_id=$((1000 + EPOCHSECONDS % 6000000 * 10)) file
  for file in slurm.conf slurmdbd.conf; do
    sed -e "s|@ROOT@|$root|" -e "s|@CONTROL@|$control|" -e "s|@NETWORK@|$network|" -e "s|@NODES@|$nodes|" \
      -e "s|@LAST_ADDRESS@|$((10 + nodes))|" -e "s|@CPUS@|$cpus|" -e "s|@GRES@|$gres|" -e "s|@MEMORY_MB@|$memory_mb|" \
      -e "s|@MEMORY_PER_CPU_MB@|$((memory_mb / cpus))|" -e "s|@FIRST_JOB_ID@|$first_job_id|" \
      "$here/$file.in" >"$root/etc/$file"
  done
  chmod 600 "$root/etc/slurmdbd.conf"
  cp "$here/cgroup.conf" "$root/etc/"
  sed 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf >"$root/etc/nsswitch.conf"
}

# What the machine itself gets: the names, and SLURM's configuration where its clients look for it.
change_the_machine() {
  if [[ ! -d /etc/slurm ]]; then
    touch "$root/made-etc-slurm"
    mkdir /etc/slurm
  fi
  ln -s "$slurm_conf" "$slurm_link"
  local names=("$network.1 slurm-login" "$network.2 $control") i
  for ((i = 1; i <= nodes; i++)); do names+=("$network.$((10 + i)) n$i"); done
  write_names "${names[@]}"
}

start_munge() {
  mungekey --create --keyfile="$root/etc/munge.key"
  inside "$control" munged --key-file="$root/etc/munge.key" --socket="$root/run/munge.socket" \
    --pid-file="$root/run/munged.pid" --log-file="$root/log/munged.log" --seed-file="$root/run/munged.seed"
}

database_answers() { inside "$control" bash -c ': <>/dev/tcp/127.0.0.1/3306' 2>/dev/null; }

# On the controller's own loopback, which nobody else can reach; hence no passwords. In memory (50 MB), for it makes a
# hundred tables, each flushed to disk, which took seconds on a busy one.
start_database() {
  local options=(--no-defaults --user=root --datadir="$root/mysql" --innodb-log-file-size=4M
    --innodb-autoextend-increment=8)
  inside "$control" mount -t tmpfs -o mode=700 tmpfs "$root/mysql"
  inside "$control" mariadb-install-db "${options[@]}" --skip-test-db >"$root/log/mariadb-install.log" 2>&1 ||
    fail "MariaDB could not be set up." mariadb-install
  inside "$control" setsid --fork mariadbd "${options[@]}" --skip-grant-tables --bind-address=127.0.0.1 \
    --socket="$root/run/mysql.sock" --pid-file="$root/run/mariadbd.pid" --skip-name-resolve --performance-schema=0 \
    --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
    --max-allowed-packet=16M </dev/null >"$root/log/mariadbd.log" 2>&1
  wait_for 20 database_answers || fail "MariaDB did not start within 20 s." mariadbd
}

start_accounting() {
  inside "$control" slurmdbd
  wait_for 20 accounting_answers || fail "slurmdbd did not start within 20 s." slurmdbd
  # whoever called sudo is the one who wants to submit jobs
  local users=root
  [[ ${SUDO_USER:-root} == root ]] || users+=,$SUDO_USER
  {
    sacctmgr -i add cluster refbert-sandbox &&
      sacctmgr -i add account default,paid &&
      sacctmgr -i add user "$users" account=default,paid DefaultAccount=default &&
      sacctmgr -i add user nobody account=default &&
      sacctmgr -i modify user root set DefaultAccount=default
  } >"$root/log/sacctmgr.log" 2>&1 || fail "the accounts could not be made." sacctmgr
}

all_usable() { [[ $(usable_nodes | wc -l) == "$nodes" ]]; }

start_nodes() {
  local i jobs=()
  for ((i = 1; i <= nodes; i++)); do
    { switch_on_node "n$i"; start_slurmd_node "n$i"; } &
    jobs+=($!)
  done
  for i in "${jobs[@]}"; do wait "$i"; done
  wait_for 30 all_usable || fail "not all nodes registered within 30 s." slurmctld
}

up() {
  local wanted="nodes=$nodes cpus=$cpus memory_mb=$memory_mb gpus=$gpus" missing
  refuse_inside_a_job
  refuse_other_slurm
  lock
  if in_order; then
    say "already up"
    summary
    return
  fi
  need_namespaces
  missing=$(missing_packages | xargs)
  [[ -z $missing || $install == yes ]] ||
    die "these packages are missing: $missing; install them, or leave out --no-install."
  # with a trap of its own a signal waits for the command in progress: apt-get ends what it began
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap abort EXIT
  make_folder
  # an earlier cluster: with other settings, damaged, or of before a reboot
  take_down
  # shellcheck disable=SC2086
  [[ -z $missing ]] || install_packages $missing
  say "packages are there: $(slurmctld -V)"
  write_configuration
  change_the_machine
  switch_on_control
  start_munge
  say "controller's host, munged"
  start_database
  say "MariaDB"
  start_accounting
  say "slurmdbd, accounts"
  inside "$control" slurmctld
  wait_for 20 controller_answers || fail "slurmctld did not start within 20 s." slurmctld
  say "slurmctld"
  start_nodes
  echo "$wanted" >"$root/settings"
  trap - EXIT
  say "$nodes nodes"
  summary
}

summary() {
  sinfo
  echo "Use it like any cluster (sbatch, srun, squeue, sacct), or: refbert doctor --on slurm/profiles/sandbox.yaml"
}
