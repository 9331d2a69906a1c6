# Two network namespaces on a bridge in a third, by hand, and the throughput of TCP
# between them as iperf3 tells it. Run by unshare --net --mount.
set -e
mount --make-rprivate /

mount -t tmpfs run /run
mkdir /run/netns
for f in /proc/sys/net/bridge/bridge-nf-call-*; do
	[ ! -e "$f" ] || echo 0 >"$f"
done
ip link add sw type bridge
ip link set sw up
for n in 1 2; do
	ip netns add $n
	ip link add p$n type veth peer name eth0 netns $n
	ip link set p$n master sw up
	ip -n $n addr add 10.0.0.$n/24 dev eth0
	ip -n $n link set eth0 up
	ip -n $n link set lo up
done
ip netns exec 2 iperf3 -s -1 >/dev/null &
until ip netns exec 2 ss -Hltn | grep -q :5201; do sleep 0.05; done
ip netns exec 1 iperf3 -c 10.0.0.2 -t 2 -J
wait
