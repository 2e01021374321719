# slurm/sandbox down: whatever `up` made, changed and started, in any state of disrepair, also after a reboot.
# shellcheck shell=bash

readonly names_sign='# refbert-sandbox'    # ends every line of ours in /etc/hosts

make_folder() { mkdir -p "$root" && touch "$packages_file"; }

# Rewrite /etc/hosts in place, for it may be a bind mount: our lines, then everything that was there, byte for byte.
write_names() { # [LINE...]
  { (($# == 0)) || printf "%s $names_sign\n" "$@"; } >"$root/hosts"
  sed "/ $names_sign\$/d" /etc/hosts >>"$root/hosts"
  cmp -s "$root/hosts" /etc/hosts || cat "$root/hosts" >/etc/hosts
}

# End and restore everything. Of our folder only the list of packages stays.
take_down() {
  wait_for 20 kill_all_hosts || die "a process of the sandbox does not die within 20 s; see: pgrep -af refbert-sandbox"
  ip link del "$login_device" 2>/dev/null || true    # the kernel does it as well, but in its own time
  write_names
  [[ $(readlink "$slurm_link") != "$slurm_conf" ]] || rm "$slurm_link"
  [[ ! -e $root/made-etc-slurm ]] || rmdir --ignore-fail-on-non-empty /etc/slurm
  allow_services
  find "$root" -mindepth 1 -not -path "$packages_file" -delete
}

# The list stays as long as it names packages.
remove_folder() { [[ -s $packages_file ]] || rm -r "$root"; }

down() { # [--packages]
  refuse_inside_a_job
  lock
  if [[ ! -e $packages_file && $(readlink "$slurm_link") != "$slurm_conf" ]]; then
    echo "down; there is nothing to end."
    return
  fi
  make_folder
  take_down
  if [[ ${1-} == --packages ]]; then
    remove_packages
    : >"$packages_file"
  fi
  remove_folder
  if [[ -e $packages_file ]]; then
    say "down; the packages that \`up\` installed stay (remove them with: slurm/sandbox down --packages)"
  else
    say "down; the machine is as it was before"
  fi
}
