package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// These tests run on one of the two machines of scripts/vmpair and command the other
// by ssh.

// peer is the other host's name for ssh.
func peer(t *testing.T) string {
	t.Helper()
	p := os.Getenv("MSH_PEER")
	if p == "" {
		t.Skip("wants two machines: scripts/vmtest -c pair")
	}
	return p
}

// there runs a shell script on the other host.
func there(t *testing.T, script string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "ssh", peer(t), script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("on the other host: %s: %v: %s%s", script, err, out, stderr.Bytes())
	}
	return string(out)
}

const streamEnv = "MSH_TEST_STREAM" // this is a program of pairStreamer's in a machine

// pairStreamer is what machines run in these tests: "serve:PORT" sends bytes that both
// sides can work out, "connect:ADDR" checks each of them and writes down how many
// have come, in a file that is replaced whole.
func pairStreamer(role string) {
	what, where, _ := strings.Cut(role, ":")
	err := errors.New("no such role")
	switch what {
	case "serve":
		err = serveStream(where)
	case "connect":
		err = checkStream(where)
	}
	os.WriteFile("/stream.error", []byte(err.Error()), 0o644)
	os.Exit(1)
}

const streamBlock = 4096

// block is the n-th of a stream.
func block(n uint64) []byte {
	var seed [32]byte
	binary.LittleEndian.PutUint64(seed[:], n)
	b := make([]byte, streamBlock)
	rand.NewChaCha8(seed).Read(b)
	return b
}

func serveStream(port string) error {
	ballast := make([]byte, 16<<20) // that pre-copy has something to send ahead
	for i := range ballast {
		ballast[i] = byte(i >> 12)
	}
	l, err := net.Listen("tcp4", ":"+port)
	if err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	for n := uint64(0); ; n++ {
		if ballast[int(n%4096)<<12] != byte(n%4096) {
			return errors.New("the memory is not what it was")
		}
		if _, err := c.Write(block(n)); err != nil {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func checkStream(addr string) error {
	c, err := net.Dial("tcp4", addr)
	if err != nil {
		return err
	}
	got := make([]byte, streamBlock)
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(c, got); err != nil {
			return err
		}
		if !bytes.Equal(got, block(n)) {
			return fmt.Errorf("block %d is not what was sent", n)
		}
		if err := os.WriteFile("/stream.new", fmt.Appendf(nil, "%d\n", n+1), 0o644); err != nil {
			return err
		}
		if err := os.Rename("/stream.new", "/stream"); err != nil {
			return err
		}
	}
}

// pairStream has a machine be one side of a stream.
func pairStream(t *testing.T, m *Machine, role string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", streamEnv + "=" + role + " setsid " + self + " </dev/null >/log 2>&1 &"}}, nil, long)
	if err != nil || r.Code != 0 {
		t.Fatal(err, r)
	}
}

// patient bounds what is slow in a virtual machine.
const patient = 2 * time.Minute

// came waits until so many blocks have come in a machine, as seen by read.
func came(t *testing.T, read func() string, more int) int {
	t.Helper()
	n, first := 0, -1
	for end := time.Now().Add(patient); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if _, err := fmt.Sscan(read(), &n); err != nil {
			continue
		}
		if first < 0 {
			first = n
		}
		if n >= first+more {
			return n
		}
	}
	t.Fatalf("the stream stands still at block %d", n)
	return 0
}

func streamOf(m *Machine) func() string {
	return func() string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/root/stream", m.Pid()))
		return string(b)
	}
}

// vxlanOf is a network that both hosts are on; here is the first.
func vxlanOf(t *testing.T, l *Lab) *VNet {
	t.Helper()
	v, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.8.0.0/24"), VXLAN: &VXLAN{ID: 7, Peers: []netip.Addr{netip.MustParseAddr("10.77.0.2")}}})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A server moves to the other host, memory first; its client stays, and every byte of
// the stream between them comes. Back again it is as before. The first host has
// cgroup v1, the other v2.
func TestPairMigrate(t *testing.T) {
	peer(t)
	needCriu(t)
	l := newLab(t)
	vxlanOf(t, l)
	root := &Root{Source: "/", Write: "overlay"}
	server := forkNamed(t, l, "server", root, space("pidspace"), &Netif{VNet: "lan"}, &Memory{Max: bytesOf(256 << 20)})
	client := forkNamed(t, l, "client", root, space("pidspace"), &Netif{VNet: "lan"})
	pairStream(t, server, "serve:7000")
	if err := server.WaitPort(t.Context(), 7000, patient); err != nil {
		t.Fatal(err)
	}
	pairStream(t, client, "connect:"+server.Address()+":7000")
	came(t, streamOf(client), 10)

	to := &Remote{Host: peer(t)}
	r, err := server.Migrate(t.Context(), to, MigrateOptions{Rounds: -1})
	if err != nil {
		explainCriu(t, err)
		t.Fatal(err)
	}
	t.Logf("%+v", r)
	if r.Mode != PreCopy || r.Rounds < 1 {
		t.Errorf("mode %s (%s), %d rounds: this kernel tracks changed pages", r.Mode, r.Why, r.Rounds)
	}
	came(t, streamOf(client), 30)
	if ls := there(t, "msh ls"); !strings.Contains(ls, "server") {
		t.Errorf("there: %s", ls)
	}
	if max := there(t, "cat /sys/fs/cgroup/msh."+r.Lab+".server/memory.max"); max != "268435456\n" {
		t.Errorf("its limit there: %s", max)
	}
	if e, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/stream.error", client.Pid())); err == nil {
		t.Errorf("the client: %s", e)
	}
	there(t, "msh down "+r.Lab)
	if left := there(t, "find /run/msh /sys/fs/cgroup -name '*msh*' 2>/dev/null; true"); left != "" {
		t.Errorf("left there: %s", left)
	}
}

// The line to the other host breaks while the machine goes: it runs on here, and
// nothing is left there.
func TestPairCut(t *testing.T) {
	peer(t)
	needCriu(t)
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"))
	started(t, m, counting)
	eventuallyIn(t, m, "/count", "\n3 ")
	// ssh is killed once the machine stands still.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		for ctx.Err() == nil && m.State() != "frozen" {
			time.Sleep(10 * time.Millisecond)
		}
		killChildren(t, "ssh")
	}()
	_, err := m.Migrate(t.Context(), &Remote{Host: peer(t)}, MigrateOptions{Patience: patient})
	if err == nil {
		t.Fatal("it has moved all the same")
	}
	if !strings.Contains(err.Error(), "ssh to ") && !strings.Contains(err.Error(), "line is broken") {
		t.Fatalf("not for the line: %v", err)
	}
	t.Log(err)
	before := strings.Count(readIn(t, m, "/count"), "\n")
	eventuallyIn(t, m, "/count", fmt.Sprintf("\n%d ", before+3))
	var left string
	for end := time.Now().Add(patient); time.Now().Before(end); time.Sleep(time.Second) {
		if left = there(t, "find /run/msh /sys/fs/cgroup -name '*msh*' 2>/dev/null; true"); left == "" {
			return
		}
	}
	t.Errorf("left there: %s", left)
}

// killChildren ends those children of this process that run a program.
func killChildren(t *testing.T, name string) {
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		comm, _ := os.ReadFile("/proc/" + d.Name() + "/comm")
		stat, _ := os.ReadFile("/proc/" + d.Name() + "/stat")
		if strings.TrimSpace(string(comm)) == name && int(statField(stat, 1)) == os.Getpid() {
			var pid int
			fmt.Sscan(d.Name(), &pid)
			if p, err := os.FindProcess(pid); err == nil {
				p.Kill()
			}
		}
	}
}
