package kernel

import (
	"errors"
	"fmt"
	"testing"
)

func TestMemoryMax(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &Memory{Max: bytesOf(16 << 20)})
	want(t, "limit", fmt.Sprint(16<<20), group(t, m, "memory", "memory.limit_in_bytes"))
	r := try(t, m, "/bin/sh", "-c", "x=$(dd if=/dev/zero bs=1M count=32 2>/dev/null | tr '\\0' x); echo ${#x}")
	if r.Code != 137 {
		t.Errorf("beyond max: code %d, %s", r.Code, r.Stdout)
	}
	want(t, "its init", "running", m.State())
	s, err := m.Stats()
	if err != nil || s.MemoryPeak == nil || *s.MemoryPeak < 8<<20 || *s.MemoryPeak > 16<<20 {
		t.Errorf("stats: %+v, %v", s, err)
	}
	if err := m.Set(&Memory{Max: bytesOf(128 << 20)}); err != nil {
		t.Fatal(err)
	}
	want(t, "limit, set", fmt.Sprint(128<<20), group(t, m, "memory", "memory.limit_in_bytes"))
	want(t, "within max", fmt.Sprint(32<<20), sh(t, m, "x=$(dd if=/dev/zero bs=1M count=32 2>/dev/null | tr '\\0' x); echo ${#x}"))
}

// v1 counts memory and swap together.
func TestMemorySwap(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m := fork(t, l, &Memory{Max: bytesOf(16 << 20), Swap: bytesOf(4 << 20)})
	want(t, "memory and swap", fmt.Sprint(20<<20), group(t, m, "memory", "memory.memsw.limit_in_bytes"))
	for _, s := range []struct {
		set        *Memory
		max, total int64
	}{
		{&Memory{Swap: bytesOf(0)}, 16 << 20, 16 << 20},
		{&Memory{Max: bytesOf(32 << 20)}, 32 << 20, 32 << 20},
		{&Memory{Max: bytesOf(8 << 20)}, 8 << 20, 8 << 20},
	} {
		if err := m.Set(s.set); err != nil {
			t.Fatal(err)
		}
		want(t, "memory", fmt.Sprint(s.max), group(t, m, "memory", "memory.limit_in_bytes"))
		want(t, "memory and swap", fmt.Sprint(s.total), group(t, m, "memory", "memory.memsw.limit_in_bytes"))
	}
}

// Without max it would limit nothing there.
func TestMemorySwapAlone(t *testing.T) {
	needV1(t)
	l := newLab(t)
	contains(t, refused(t, l, l.Host(), &Memory{Swap: bytesOf(1 << 20)}), "memory: swap: got 1048576", "max beside it")
	m := fork(t, l)
	if err := m.Set(&Memory{Swap: bytesOf(1 << 20)}); err == nil {
		t.Error("set without max")
	} else {
		contains(t, err.Error(), "max beside it")
	}
	if err := m.Set(&Memory{Max: bytesOf(16 << 20)}); err != nil {
		t.Fatal(err)
	}
	if err := m.Set(&Memory{Swap: bytesOf(1 << 20)}); err != nil {
		t.Fatal(err)
	}
	want(t, "memory and swap", fmt.Sprint(17<<20), group(t, m, "memory", "memory.memsw.limit_in_bytes"))
}

func TestMemoryTooMuch(t *testing.T) {
	most := bytesOf(maxMemory)
	if err := (&Memory{Max: most, Swap: most}).Validate(); err != nil {
		t.Error(err)
	}
	for _, m := range []*Memory{{Max: bytesOf(1<<63 - 1)}, {Swap: bytesOf(1<<63 - 1)}, {Reserve: bytesOf(maxMemory + 1)}} {
		if err := m.Validate(); err == nil {
			t.Errorf("%+v: valid", m)
		} else {
			contains(t, err.Error(), "at most 1152921504606846976 bytes")
		}
	}
}

func TestMemoryHigh(t *testing.T) {
	needV1(t)
	l := newLab(t)
	_, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Memory{High: bytesOf(1 << 20)}}})
	if !errors.Is(err, ErrNotSupported) {
		t.Fatalf("got %v, want ErrNotSupported", err)
	}
	contains(t, err.Error(), "memory.high is cgroup v2's", "memory(max=) works on both")
	m := fork(t, l, &Memory{Max: bytesOf(16 << 20)})
	if err := m.Set(&Memory{High: bytesOf(1 << 20)}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("set: got %v, want ErrNotSupported", err)
	}
}

// More is not promised than there is, on the host and in each machine.
func TestMemoryReserve(t *testing.T) {
	needV1(t)
	l := newLab(t)
	total, err := memTotal()
	if err != nil {
		t.Fatal(err)
	}
	free := func(m *Machine) int64 {
		n, err := l.host.unreserved(m)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	want(t, "free at first", total, free(l.Host()))
	part := total / 2
	m := fork(t, l, &Memory{Reserve: &part}, &Children{Max: 3})
	want(t, "free", total-part, free(l.Host()))
	contains(t, refused(t, l, l.Host(), &Memory{Reserve: bytesOf(total - part + 1)}), "memory: reserve", fmt.Sprintf("got \"%d bytes\"", total-part+1), fmt.Sprintf("at most %d", total-part), "host")
	contains(t, read(t, l.host.State+"/.book/memory-"+l.Name()+".m1"), m.ID(), fmt.Sprint(part))

	child := forkIn(t, l, m, &Spec{Resources: []Resource{&Memory{Reserve: bytesOf(part - 1000)}}})
	want(t, "what m1 can promise", int64(1000), free(m))
	want(t, "the host's does not change", total-part, free(l.Host()))
	contains(t, refused(t, l, m, &Memory{Reserve: bytesOf(1001)}), "at most 1000", "m1")
	destroy(t, child)
	want(t, "what m1 can promise again", part, free(m))
	if err := m.Set(&Memory{Reserve: bytesOf(1)}); err == nil {
		t.Error("a reservation was changed")
	}
	destroy(t, m)
	want(t, "free at last", total, free(l.Host()))
}

func TestMemoryTooLittleToStart(t *testing.T) {
	needV1(t)
	l := newLab(t)
	m, err := l.Fork(t.Context(), l.Host(), &Spec{Resources: []Resource{&Memory{Max: bytesOf(256 << 10)}, overlay()}})
	if err == nil {
		destroy(t, m)
		return // enough, on this kernel
	}
	contains(t, err.Error(), "memory: max: 262144 bytes may be too little")
}
