# The Debian packages that the sandbox needs: find what is missing, install it, remove it again.
# shellcheck shell=bash

readonly policy=/usr/sbin/policy-rc.d    # asked by packages' scripts before they start a service
readonly policy_sign='# refbert-sandbox'

missing_packages() {
  local pair
  for pair in slurmctld:slurmctld slurmd:slurmd slurmdbd:slurmdbd sbatch:slurm-client munged:munge \
    mariadb-install-db:mariadb-server-core my_print_defaults:mariadb-client-core ip:iproute2 pgrep:procps \
    nsenter:util-linux; do
    command -v "${pair%:*}" >/dev/null || echo "${pair#*:}"
  done
}

# Run a command that is silent unless it fails.
quietly() {
  "$@" >"$root/apt.log" 2>&1 || {
    tail -n 30 "$root/apt.log" >&2
    return 1
  }
}

install_packages() { # PACKAGE...
  export DEBIAN_FRONTEND=noninteractive
  local options=(-y --no-install-recommends -o APT::Keep-Downloaded-Packages=false)
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\n%s: no services while packages are installed\nexit 101\n' "$policy_sign" >"$policy"
    chmod 755 "$policy"
  elif "$policy" slurmctld start >/dev/null 2>&1 || (($? != 101)); then
    die "$policy lets packages start services; install these yourself: $*"
  fi
  quietly apt-get update || die "apt-get update failed."
  # written down before it happens, so that an interruption loses nothing; [brackets] mark what is only upgraded
  apt-get install -s "${options[@]}" "$@" | awk '$1 == "Inst" && $3 !~ /^\[/ { print $2 }' >>"$packages_file"
  quietly apt-get install "${options[@]}" "$@" || die "apt-get could not install $*."
  allow_services
}

# Take our policy away, and only ours.
allow_services() { if grep -qsx "$policy_sign: .*" "$policy"; then rm "$policy"; fi; }

# dpkg, not apt-get: it refuses to remove what some other package has come to need.
remove_packages() {
  sort -u "$packages_file" | DEBIAN_FRONTEND=noninteractive quietly xargs -r dpkg --purge ||
    die "dpkg could not remove all of the packages listed in $packages_file."
}
