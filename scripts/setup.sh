# Sourced by the other scripts: makes this checkout ready to run on a fresh Debian 12.
# shellcheck shell=bash

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$top/.venv

# Tools of the system live here, and a bare environment may not say so.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# Program to look for, and the package that has it.
packages=(
  "curl curl"
  "dig dnsutils"
  "dnsmasq dnsmasq-base"
  "ip iproute2"
  "ping iputils-ping"
  "iperf3 iperf3"
  "iptables iptables"
  "nft nftables"
  "nginx nginx-light"
  "ps procps"
  "ssh openssh-client"
  "sshd openssh-server"
  "tcpdump tcpdump"
  "traceroute traceroute"
  "tshark tshark"
)

# The same, for what is measured with and compared with.
measuring=(
  "redsocks redsocks"
  "wrk wrk"
)

# Print the comment at the top of the script and end, if its arguments ask for help.
setup_help() {
  case " $* " in
  *" -h "* | *" --help "*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$top/scripts/${0##*/}" && exit 0 ;;
  esac
}

# Install what is missing, without starting a service of it; arguments are more rows as above.
setup_machine() {
  local missing=() row
  for row in "${packages[@]}" "$@"; do
    command -v "${row% *}" >/dev/null || missing+=("${row#* }")
  done
  find_python >/dev/null || missing+=(python3-venv)
  [ -e /etc/protocols ] || missing+=(netbase)
  [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "setup: install these first, as root: ${missing[*]}" >&2
    return 1
  fi
  echo "setup: installing ${missing[*]}" >&2
  (
    # invoke-rc.d(8) asks policy-rc.d, where there is none, services are started.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
      trap 'rm -f $policy' EXIT
      trap 'exit 1' INT TERM HUP
      printf '#!/bin/sh\nexit 101\n' >$policy
      chmod 755 $policy
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update || echo "setup: no fresh package lists, trying the old ones" >&2
    apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null </dev/null
  )
}

# Make everything ready that the measuring scripts use. Peers that cannot be had are left out.
setup_measuring() {
  setup_machine "${measuring[@]}"
  setup_venv bench
  if ! command -v sshuttle >/dev/null && [ ! -x "$venv/sshuttle/bin/sshuttle" ]; then
    echo "setup: installing sshuttle into $venv/sshuttle" >&2
    # It does not go into an environment that others use.
    "$(find_python)" -m venv "$venv/sshuttle" &&
      "$venv/sshuttle/bin/python" -m pip install -q --disable-pip-version-check sshuttle >&2 ||
      echo "setup: sshuttle cannot be installed" >&2
  fi
}

# Make .venv, if need be, with this checkout in it and the extra requirements named $1.
setup_venv() {
  local extra=${1:-} stamp=$venv/.setup-done want python
  want="$(cat "$top/pyproject.toml" "$top/scripts/setup.sh" | sha256sum | cut -c1-64) $top"
  if [ -e "$stamp" ] && "$venv/bin/python" -c '' 2>/dev/null; then
    # A line for each set of extras; one with extras serves who wants none as well.
    ! grep -qF "$want $extra" "$stamp" || return 0
    grep -qF "$want " "$stamp" || rm "$stamp"
  elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    echo "setup: making .venv with $python" >&2
    rm -rf "$venv"
    "$python" -m venv "$venv"
  fi
  "$venv/bin/python" -m pip install -q --disable-pip-version-check \
    -e "$top${extra:+[$extra]}" >&2
  echo "$want $extra" >>"$stamp"
}

# Print a Python of 3.11 or later that can make virtual environments. A shim of pyenv exists for
# every version and works for the selected one only, so each candidate is tried.
find_python() {
  local python
  for python in python3.11 /usr/bin/python3.11 python3 /usr/bin/python3; do
    if "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      echo "$python"
      return 0
    fi
  done
  return 1
}
