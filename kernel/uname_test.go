package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// every are all the fields, none as the kernel has them.
func everyName() *Uname {
	return &Uname{Nodename: "box", Domainname: "lab.test", Sysname: "Plan9", Release: "4.0.1-test", Version: "#7 SMP a while ago", Machine: "vax780"}
}

// askAll asks in every way that a shell has.
const askAll = "uname -s; uname -n; uname -r; uname -v; uname -m; cd /proc/sys/kernel; cat ostype hostname osrelease version domainname; cat /proc/version"

func answered(u *Uname) string {
	return strings.Join([]string{u.Sysname, u.Nodename, u.Release, u.Version, u.Machine, u.Sysname, u.Nodename, u.Release, u.Version, u.Domainname,
		u.Sysname + " version " + u.Release + " " + builder() + u.Version}, "\n")
}

func TestUnameFields(t *testing.T) {
	real, err := kernelNames()
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t)
	for what, rs := range map[string][]Resource{
		"the parent's root":          {},
		"a PID space":                {space("pidspace")},
		"a root":                     {&Root{Source: "/", Write: "overlay"}, space("pidspace")},
		"a root, its parent's /proc": {&Root{Source: "/", Write: "overlay"}},
		"ids of its own":             {&Root{Source: "/", Write: "overlay"}, space("pidspace"), &Uidspace{Map: []IDMap{{0, 0, 65536}}}},
		"level 2":                    {&Root{Source: "/", Write: "overlay"}, space("pidspace"), atLevel(2)},
		"few descriptors":            {space("pidspace"), &Rlimit{Name: "nofile", Soft: 6, Hard: 6}},
	} {
		m := fork(t, l, append(rs, everyName())...)
		want(t, what, answered(everyName()), sh(t, m, askAll))
		r, err := m.Run(t.Context(), &Command{Argv: []string{"uname", "-srm"}, User: "nobody"}, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		want(t, what+", another user", "Plan9 4.0.1-test vax780\n", string(r.Stdout))
		if r := try(t, m, "/bin/sh", "-c", "echo 1 2>/dev/null >/proc/sys/kernel/osrelease"); r.Code == 0 {
			t.Errorf("%s: wrote to osrelease", what)
		}
		destroy(t, m)
	}
	// What is not given is the kernel's, the names those of the moment.
	m := fork(t, l, &Uname{Release: "9.9"})
	want(t, "the rest", fmt.Sprintf("%s 9.9 %s %s", real.Sysname, real.Version, real.Machine), run(t, m, "uname", "-srvm"))
	want(t, "linux32", "i686", strings.ReplaceAll(sh(t, m, "setarch linux32 uname -m"), "armv8l", "i686"))
	sh(t, m, "hostname changed")
	want(t, "a name that was changed inside", "changed", run(t, m, "uname", "-n"))
	want(t, "in a UTS space made inside", "inner 9.9", sh(t, m, "unshare -u sh -c 'hostname inner; uname -nr'"))
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		t.Fatal(err)
	}
	want(t, "the host's release", real.Release, unix.ByteSliceToString(host.Release[:]))
}

// Whoever comes in is answered, whatever the way, and its children too.
func TestUnameWays(t *testing.T) {
	l := newLab(t)
	m := forkIn(t, l, l.Host(), &Spec{Init: []string{"/bin/sh", "-c", "uname -r >/tmp/init; exec sleep 600"}, Resources: []Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), &Uname{Release: "5.0"}}})
	if err := m.WaitRun(t.Context(), &Command{Argv: []string{"test", "-s", "/tmp/init"}}, time.Minute); err != nil {
		t.Fatal(err)
	}
	want(t, "init", "5.0", run(t, m, "cat", "/tmp/init"))
	p := spawn(t, m, "(uname -r) >/tmp/spawned")
	if _, err := p.Wait(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	want(t, "spawn", "5.0", run(t, m, "cat", "/tmp/spawned"))
	var out strings.Builder
	if _, err := m.Interact(t.Context(), &Command{Argv: []string{"uname", "-r"}}, nil, &out); err != nil {
		t.Fatal(err)
	}
	want(t, "shell", "5.0", strings.TrimSpace(out.String()))
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			r, err := m.Run(t.Context(), &Command{Argv: []string{"/bin/sh", "-c", "for i in 1 2 3 4 5 6 7 8; do uname -r; done | sort -u"}}, nil, 0)
			if err != nil || string(r.Stdout) != "5.0\n" {
				t.Errorf("at once: %v %q", err, r.Stdout)
			}
		})
	}
	wait.Wait()
	// The listeners of those that have ended are closed.
	fds := func() int { e, _ := os.ReadDir("/proc/self/fd"); return len(e) }
	before := fds()
	for range 5 {
		run(t, m, "uname")
	}
	eventually(t, "the listeners are closed", func() bool { return fds() <= before })
}

// elf is a static program of those instructions, which may use the 4 KiB at elfBuffer.
func elf(t *testing.T, path string, wide bool, code []byte) {
	t.Helper()
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	const base, memory = 0x10000, 0x3000
	if wide {
		b[4] = 2
		b = le.AppendUint16(le.AppendUint16(b, 2), 62) // ET_EXEC, EM_X86_64
		b = le.AppendUint32(b, 1)
		for _, v := range []uint64{base + 64 + 56, 64, 0} { // entry, program headers, sections
			b = le.AppendUint64(b, v)
		}
		b = le.AppendUint32(b, 0)
		for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
			b = le.AppendUint16(b, v)
		}
		b = le.AppendUint32(le.AppendUint32(b, 1), 7) // PT_LOAD, all rights
		for _, v := range []uint64{0, base, base, 64 + 56 + uint64(len(code)), memory, 0x1000} {
			b = le.AppendUint64(b, v)
		}
	} else {
		b = le.AppendUint16(le.AppendUint16(b, 2), 3) // ET_EXEC, EM_386
		for _, v := range []uint32{1, base + 52 + 32, 52, 0, 0} {
			b = le.AppendUint32(b, v)
		}
		for _, v := range []uint16{52, 32, 1, 0, 0, 0} {
			b = le.AppendUint16(b, v)
		}
		for _, v := range []uint32{1, 0, base, base, 52 + 32 + uint32(len(code)), memory, 7, 0x1000} {
			b = le.AppendUint32(b, v)
		}
	}
	mustWrite(t, path, string(append(b, code...)), 0o755)
}

const elfBuffer = 0x11000

// i386 has three system calls for it, of three layouts.
func TestUnameABIV2(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("i386 is an ABI of amd64")
	}
	dir := t.TempDir()
	os.Chmod(dir, 0o755)
	l := newLab(t)
	m := fork(t, l, &Mount{Source: dir, Target: "/mnt", Type: "bind"}, everyName())
	word := func(op byte, v uint32) []byte { return binary.LittleEndian.AppendUint32([]byte{op}, v) }
	const eax, ecx, edx, ebx, edi = 0xb8, 0xb9, 0xba, 0xbb, 0xbf // mov REGISTER, the word behind
	int80, syscall := []byte{0xcd, 0x80}, []byte{0x0f, 0x05}
	pad := func(size int, fields ...string) []byte {
		text := make([]byte, 390)
		for i, f := range fields {
			copy(text[i*size:(i+1)*size-1], f)
		}
		return text
	}
	u := everyName()
	for _, c := range []struct {
		name string
		nr   uint32
		want []byte
	}{
		{"uname", 122, pad(65, u.Sysname, u.Nodename, u.Release, u.Version, u.Machine, u.Domainname)},
		{"olduname", 109, pad(65, u.Sysname, u.Nodename, u.Release, u.Version, u.Machine)},
		{"oldolduname", 59, pad(9, u.Sysname, u.Nodename, u.Release, u.Version, u.Machine)},
	} {
		// uname(buffer); write(1, buffer, 390); exit(-what the first returned)
		elf(t, filepath.Join(dir, c.name), false, slices.Concat(word(eax, c.nr), word(ebx, elfBuffer), int80, []byte{0x89, 0xc6}, // mov esi, eax
			word(eax, 4), word(ebx, 1), word(ecx, elfBuffer), word(edx, 390), int80, word(eax, 1), []byte{0x89, 0xf3, 0xf7, 0xdb}, int80)) // mov ebx, esi; neg ebx
		r, err := m.Run(t.Context(), &Command{Argv: []string{"/mnt/" + c.name}}, nil, 0)
		if errors.Is(err, unix.ENOEXEC) && os.Getenv("MSH_VM") != "1" {
			t.Log("this kernel runs no programs of i386")
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.Code != 0 || !bytes.Equal(r.Stdout, c.want) {
			t.Errorf("%s of i386: code %d, %q, want %q", c.name, r.Code, r.Stdout, c.want)
		}
	}
	// Its own ABI with x32's bit: answered where the kernel has x32, else there is no such call.
	asks := func(name string, nr, at uint32) int {
		elf(t, filepath.Join(dir, name), true, slices.Concat(word(eax, nr), word(edi, at), syscall, []byte{0x89, 0xc7, 0xf7, 0xdf}, word(eax, 60), syscall)) // mov edi, eax; neg edi
		return try(t, m, "/mnt/"+name).Code
	}
	code := 0
	if _, _, errno := unix.RawSyscall(1<<30|unix.SYS_GETPID, 0, 0, 0); errno != 0 {
		code = int(unix.ENOSYS)
	}
	want(t, "x32's errno", code, asks("x32", 1<<30|63, elfBuffer))
	want(t, "a pointer to nowhere", int(unix.EFAULT), asks("wild", 63, 1))
	want(t, "a pointer to somewhere", 0, asks("tame", 63, elfBuffer))
}

// It can change while the machine runs, for those that run.
func TestUnameSet(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Uname{Release: "1.0", Nodename: "a"})
	spawn(t, m, "while :; do uname -r >/tmp/new; mv /tmp/new /tmp/now; sleep 0.02; done")
	if err := m.Set(&Uname{Release: "2.0", Machine: "m68k"}); err != nil {
		t.Fatal(err)
	}
	want(t, "set", "a 2.0 m68k", run(t, m, "uname", "-nrm"))
	want(t, "in /proc", "2.0", run(t, m, "cat", "/proc/sys/kernel/osrelease"))
	eventually(t, "who runs sees it", func() bool { r := try(t, m, "cat", "/tmp/now"); return string(r.Stdout) == "2.0\n" })
	plain := fork(t, l, &Uname{Nodename: "b"})
	err := plain.Set(&Uname{Release: "2.0"})
	if err == nil {
		t.Fatal("set the release of a machine that asks the kernel")
	}
	contains(t, err.Error(), "a machine that was made with one of them")
}

// A machine in a machine answers as that does, and what it names itself.
func TestUnameNested(t *testing.T) {
	l := newLab(t)
	outer := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Uname{Release: "3.0", Sysname: "Outer"}, &Children{Max: 9})
	for _, c := range []struct {
		rs   []Resource
		want string
	}{
		{nil, "Outer 3.0"},
		{[]Resource{space("pidspace")}, "Outer 3.0"},
		{[]Resource{space("pidspace"), &Root{Source: "/", Write: "overlay"}}, "Outer 3.0"},
		{[]Resource{&Uname{Release: "4.0"}}, "Outer 4.0"},
		{[]Resource{&Uidspace{Map: []IDMap{{0, 0, 1000}}}, &Uname{Release: "4.0"}}, "Outer 4.0"},
	} {
		m := forkIn(t, l, outer, &Spec{Resources: c.rs})
		want(t, fmt.Sprintf("with %d resources", len(c.rs)), c.want, run(t, m, "uname", "-sr"))
		want(t, "in /proc", c.want, strings.ReplaceAll(sh(t, m, "cat /proc/sys/kernel/ostype /proc/sys/kernel/osrelease"), "\n", " "))
		destroy(t, m)
	}
	shares := forkIn(t, l, outer, &Spec{Resources: []Resource{space("pidspace"), &Children{Max: 1}}})
	names := forkIn(t, l, outer, &Spec{Resources: []Resource{&Uname{Release: "4.0"}, &Root{Source: "/", Write: "overlay"}}})
	inmost := forkIn(t, l, shares, &Spec{Resources: []Resource{&Root{Source: "/", Write: "overlay"}}})
	if err := outer.Set(&Uname{Release: "3.5", Sysname: "Set"}); err != nil {
		t.Fatal(err)
	}
	for m, answer := range map[*Machine]string{outer: "Set 3.5", shares: "Set 3.5", inmost: "Set 3.5", names: "Set 4.0"} {
		want(t, "set in the outer one, "+m.Name(), answer, run(t, m, "uname", "-sr"))
		want(t, "in /proc of "+m.Name(), answer, strings.ReplaceAll(sh(t, m, "cat /proc/sys/kernel/ostype /proc/sys/kernel/osrelease"), "\n", " "))
	}
	if err := outer.Set(&Uname{Release: "3.0", Sysname: "Outer"}); err != nil {
		t.Fatal(err)
	}
	_, err := l.Fork(t.Context(), outer, &Spec{Name: "no", Resources: []Resource{space("pidspace"), &Uidspace{Map: []IDMap{{0, 0, 1000}}}}})
	if err == nil {
		t.Fatal("mounted a /proc that shows what the parent's does not")
	}
	contains(t, hintOf(err), "a machine with ids of its own")
	want(t, "the outer one", "Outer 3.0", run(t, outer, "uname", "-sr"))
}

// When nobody answers any more, nobody hangs either.
func TestUnameUnanswered(t *testing.T) {
	l := newLab(t)
	m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), &Uname{Release: "3.0"})
	p := spawn(t, m, "while uname -r >/tmp/new; do mv /tmp/new /tmp/now; sleep 0.02; done; uname -r 2>/tmp/why")
	eventually(t, "it is answered", func() bool { return try(t, m, "test", "-s", "/tmp/now").Code == 0 })
	m.answers.close()
	if _, err := p.Wait(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	b, err := m.ReadFile(t.Context(), "/tmp/why")
	if err != nil {
		t.Fatal(err)
	}
	contains(t, string(b), "Function not implemented")
	if _, err := m.Run(t.Context(), &Command{Argv: []string{"true"}}, nil, 0); err == nil {
		t.Error("came in without an answer")
	} else {
		contains(t, err.Error(), "nobody answers uname for it")
	}
	m.answers, err = newAnswerer(m.Dir(), &Uname{Release: "3.0"}) // for destroy to close
	if err != nil {
		t.Fatal(err)
	}
}
