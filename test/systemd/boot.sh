# The first process of a machine, in namespaces of its own: BASE is its Debian,
# DIR/disk what differs from that, IMAGES the images for its guests.
mount --make-rprivate /
m=$DIR/machine
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$DIR/disk,workdir=$DIR/work" "$m"
mount --bind "$IMAGES" "$m/var/lib/sublet/images"
mount -t proc proc "$m/proc"
# The kernel is the real machine's: of its settings only the network's, which
# are the namespace's, may be written, and none of its devices.
mount --bind "$m/proc/sys" "$m/proc/sys"
mount --bind "$m/proc/sys/net" "$m/proc/sys/net"
mount -o remount,bind,ro "$m/proc/sys"
# As a real boot would do it.
cat /proc/sys/kernel/random/uuid >"$DIR/boot_id"
mount --bind "$DIR/boot_id" "$m/proc/sys/kernel/random/boot_id"
if [[ -e $m/proc/sysrq-trigger ]]; then mount --bind /dev/null "$m/proc/sysrq-trigger"; fi
mount -t sysfs -o ro sysfs "$m/sys"
mount -t cgroup2 cgroup2 "$m/sys/fs/cgroup"
mount -t tmpfs -o mode=755,nosuid tmpfs "$m/dev"
mkdir "$m/dev/pts" "$m/dev/shm" "$m/dev/net"
mount -t devpts -o newinstance,ptmxmode=666,mode=620,gid=5 devpts "$m/dev/pts"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$m/dev/shm"
ln -s pts/ptmx "$m/dev/ptmx"
ln -s /proc/self/fd "$m/dev/fd"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0 net/tun:10:200; do
	IFS=: read -r name major minor <<<"$device"
	mknod -m 666 "$m/dev/$name" c "$major" "$minor"
done
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$m/run"
mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$m/tmp"

hostname machine
# An uplink with nobody at the other end.
ip link set lo up
ip link add eth0 type veth peer name far0
ip addr add 198.51.100.2/24 dev eth0
ip link set far0 up
ip link set eth0 up
ip route add default via 198.51.100.1

cd "$m"
mkdir -p old
pivot_root . old
umount -l old
exec env -i container=sublet-test PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
	setpriv --bounding-set=-sys_time,-sys_module,-syslog --inh-caps=-all \
	/lib/systemd/systemd --log-target=journal
