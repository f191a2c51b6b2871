# What up and down share. Everything can be moved by the environment, so that
# the tests run them beside what is installed.
PREFIX=$(readlink -m "${PREFIX:-/usr/local}")
RUN_DIR=${SUBLET_RUN_DIR:-/run/sublet}
STATE_DIR=${SUBLET_STATE_DIR:-/var/lib/sublet}
LOG=${SUBLET_LOG:-/var/log/sublet.log} # where no systemd keeps a journal
GUEST=first
sublet=$PREFIX/bin/sublet
units=(sublet.service sublet-traffic.service) # in /etc/systemd/system
pidfile=$RUN_DIR/daemon.pid

say() { printf '%s\n' "$*" >&2; }

# as_root NAME: refuse to go on as anybody else.
as_root() {
	((EUID == 0)) && return
	say "$1: run this as root; it installs programs and sets up links and firewall rules"
	exit 1
}

# one_at_a_time NAME: wait for another one that works on the same files. The
# lock ends with this script; {lock}>&- keeps it from what it leaves running.
one_at_a_time() {
	mkdir -p "$PREFIX"
	exec {lock}<"$PREFIX"
	flock -n "$lock" && return
	say "$1: waiting for another \`make up\` or \`make down\` to end"
	flock "$lock"
}

systemd_runs() { [[ -d /run/systemd/system ]]; } # sd_booted(3)

answers() { "$sublet" host show >/dev/null 2>&1; }

# daemon_pid prints the process id of a daemon that up started in the
# background, and fails when none runs.
daemon_pid() {
	local pid
	[[ -s $pidfile ]] || return
	pid=$(<"$pidfile")
	# The number may belong to another process by now, or to a keeper.
	[[ $(readlink "/proc/$pid/exe" 2>/dev/null) == "$sublet"* ]] &&
		[[ $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") == *" serve " ]] &&
		echo "$pid"
}

# stop_daemon stops a daemon in the background. Its guests run on.
stop_daemon() {
	local pid
	pid=$(daemon_pid) || return 0
	kill "$pid" || true
	while daemon_pid >/dev/null; do sleep 0.1; done
}
