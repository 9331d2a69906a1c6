package escape

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"msh/kernel"
)

// parityEnv says that this is the caller that has all that could leak.
const parityEnv = "MSH_TEST_PARITY"

// TestParity enters machines as a caller who has of everything that a process inherits
// something unusual, by every way and at every level: each finds itself as the others
// do, and nothing is the caller's.
func TestParity(t *testing.T) {
	needRoot(t)
	if os.Getenv(parityEnv) == "" {
		cmd := exec.Command("/bin/sh", "-c", peculiar, "sh", self, "-test.run=^TestParity$", "-test.v")
		cmd.Env = append(os.Environ(), parityEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	caller := portrait(t, "the caller", saying(t, "/bin/bash", "-c", strings.ReplaceAll(inspect, "/attack", self)))
	for ids := range idsOf {
		for _, level := range levels {
			t.Run(fmt.Sprintf("%s/%d", strings.ReplaceAll(idsOf[ids], " ", "-"), level), func(t *testing.T) {
				l := newLab(t)
				rs := alone(ids, level)
				m := fork(t, l, l.Host(), &kernel.Spec{Resources: rs})
				var first map[string]string
				for _, e := range entries {
					got := portrait(t, e.name, e.run(t, l, m, rs, []string{"/bin/bash", "-c", inspect}))
					delete(got, "stat.tty") // the shell's own
					if slices.Contains([]string{"init", "restart", "nested"}, e.name) {
						for key := range got {
							if strings.HasPrefix(key, "ns.") {
								got[key] = first[key] // of another machine
							}
						}
					}
					if e.name == "shell" {
						delete(got, "environ.TERM")
					}
					if e.name == "nested" {
						got["cgroup"] = first["cgroup"] // in that of the machine around it
					}
					if first == nil {
						first = got
						for key, want := range usual {
							if got[key] != want {
								t.Errorf("%s: %q, want %q", key, got[key], want)
							}
						}
						for key := range odd {
							if caller[key] == got[key] {
								t.Errorf("%s: %q is the caller's too", key, got[key])
							}
						}
						continue
					}
					if diff := cmp.Diff(first, got); diff != "" {
						t.Errorf("by %s (-%s +%s):\n%s", e.name, entries[0].name, e.name, diff)
					}
				}
			})
		}
	}
}

// peculiar is how that caller comes to be.
const peculiar = `umask 077
ulimit -Sn 300; ulimit -Ss 4096; ulimit -Hc 1000; ulimit -Sc 1000
echo 321 >/proc/self/oom_score_adj
echo 123456 >/proc/self/timerslack_ns
exec env --ignore-signal=USR1,CHLD,HUP,RTMAX --block-signal=USR2 nice -n 3 ionice -c 3 taskset -c 0 chrt -b 0 setarch -R \
setpriv --groups 44,46 --inh-caps +net_raw --ambient-caps +net_raw --securebits +no_setuid_fixup "$@"`

// usual is what a process of a machine has, whoever has started msh.
var usual = map[string]string{
	"status.SigBlk": zeros, "status.SigIgn": zeros, "status.Umask": "0022", "status.Uid": "0 0 0 0", "status.Gid": "0 0 0 0", "status.Groups": "",
	"status.CapInh": zeros, "status.CapAmb": zeros,
	"oom_score_adj": "0", "personality": "00000000", "timerslack_ns": "50000", "cwd": "/", "fds": "0 1 2 ",
	"limits.Max open files": "256 256", // which the machine has been given
	"stat.nice":             "0", "stat.policy": "0", "stat.rt": "0",
	"look.securebits": "0", "look.pdeathsig": "0", "look.dumpable": "1",
}

// odd is what the caller has otherwise: it shows that the caller's peculiarities are
// such, and are looked at.
var odd = map[string]bool{
	"status.SigBlk": true, "status.SigIgn": true, "status.Umask": true, "status.Groups": true, "status.CapInh": true, "status.CapAmb": true,
	"oom_score_adj": true, "personality": true, "timerslack_ns": true, "cwd": true, "fds": true, "stat.nice": true, "stat.policy": true,
	"limits.Max open files": true, "look.securebits": true, "look.ioprio": true, "environ." + secret: true,
	"ns.mnt": true, "ns.pid": true, "ns.net": true, "ns.ipc": true, "ns.uts": true, "ns.cgroup": true,
}

const zeros = "0000000000000000"

// inspect prints what a process can tell of itself. What it is read by are its
// children, which have all of it; what they cannot read the attacker's program asks for.
// It is bash's: dash unblocks all signals as it starts.
const inspect = `echo "==> fds <=="
for n in {0..255}; do [ ! -e /proc/$$/fd/$n ] || printf "$n "; done; echo
echo "==> cwd <=="; pwd -P
echo "==> ns <=="; readlink /proc/self/ns/{cgroup,ipc,mnt,net,pid,time,user,uts}
echo "==> environ <=="; tr '\0\n' '\n_' </proc/$$/environ
head -v -n 1000 /proc/self/{status,limits,oom_score_adj,personality,timerslack_ns,coredump_filter,loginuid,cgroup,uid_map,gid_map,setgroups,stat}
echo; echo "==> look <=="; exec /attack look`

// look prints the rest.
func look() {
	ask := func(name string, nr, a, b, c uintptr) {
		v, _, errno := unix.Syscall(nr, a, b, c)
		if errno != 0 {
			fmt.Printf("%s: %v\n", name, errno)
			return
		}
		fmt.Printf("%s: %d\n", name, v)
	}
	var n int32
	const process = 1
	ask("ioprio", unix.SYS_IOPRIO_GET, process, 0, 0)
	ask("securebits", unix.SYS_PRCTL, unix.PR_GET_SECUREBITS, 0, 0)
	ask("dumpable", unix.SYS_PRCTL, unix.PR_GET_DUMPABLE, 0, 0)
	ask("thp", unix.SYS_PRCTL, unix.PR_GET_THP_DISABLE, 0, 0)
	unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&n)), 0, 0, 0)
	fmt.Printf("pdeathsig: %d\n", n)
	ring, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_SESSION_KEYRING, false)
	keys := make([]byte, 64)
	if err == nil {
		var in int
		in, err = unix.KeyctlBuffer(unix.KEYCTL_READ, ring, keys, 0)
		fmt.Printf("keys in the session: %d\n", in/4)
	}
	fmt.Printf("keyring: %v\n", err)
}

// saying is what a program of the host's prints.
func saying(t *testing.T, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// passing are the lines of /proc/PID/status that are of the process's own life.
var passing = regexp.MustCompile(`^(Name|State|Tgid|Ngid|Pid|PPid|TracerPid|FDSize|NStgid|NSpid|NSpgid|NSsid|Vm\w+|Rss\w+|HugetlbPages|Threads|SigQ|\w*ctxt_switches)$`)

// portrait reads what inspect has printed.
func portrait(t *testing.T, who, text string) map[string]string {
	t.Helper()
	p := map[string]string{}
	section := ""
	lines := bufio.NewScanner(strings.NewReader(strings.ReplaceAll(text, "\r", "")))
	for lines.Scan() {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "==> "); ok {
			section = strings.TrimSuffix(filepath.Base(name), " <==")
			continue
		}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		key, value, _ := strings.Cut(line, ":")
		value = strings.Join(strings.Fields(value), " ")
		switch section {
		case "status", "ns", "look":
			if !passing.MatchString(key) {
				p[section+"."+key] = value
			}
		case "limits":
			if name := strings.TrimSpace(line[:min(26, len(line))]); name != "Limit" {
				p["limits."+name] = strings.Join(strings.Fields(line[26:])[:2], " ")
			}
		case "stat": // proc_pid_stat(5), from behind the name
			f := strings.Fields(line[strings.LastIndexByte(line, ')')+1:])
			p["stat.tty"], p["stat.nice"], p["stat.rt"], p["stat.policy"] = f[4], f[16], f[37], f[38]
		case "environ":
			name, value, _ := strings.Cut(line, "=")
			p["environ."+name] = value
		case "uid_map", "gid_map": // where its ids begin is each machine's own affair
			p[section] += strings.Join([]string{words[0], words[2]}, " ") + "\n"
		case "cgroup":
			p[section] += line + "\n"
		default:
			p[section] = line
		}
	}
	if p["look.keyring"] == "" {
		t.Errorf("%s: it did not come to its end:\n%s", who, text)
	}
	return p
}
