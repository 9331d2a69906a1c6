package criu

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// image is one with a message, as criu writes it.
func image(message []byte) []byte {
	return append(binary.LittleEndian.AppendUint32([]byte("magicbox"), uint32(len(message))), message...)
}

func text(number int, b []byte) []byte {
	return append(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(number)<<3|2), uint64(len(b))), b...)
}

func number(number int, v uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(nil, uint64(number)<<3), v)
}

func returns(action uint32) []byte {
	code := binary.NativeEndian.AppendUint16(nil, 6)
	return binary.NativeEndian.AppendUint32(append(code, 0, 0), action)
}

// Filters that ask are taken out of each chain, wherever they stand, and nothing else.
func TestDropAsking(t *testing.T) {
	const ask, allow = unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_RET_ALLOW
	saved := func(action uint32, next ...uint64) []byte {
		b := text(1, returns(action))
		for _, n := range next {
			b = append(b, number(2, n)...)
		}
		return text(1, append(b, number(3, 1)...))
	}
	// 1 is installed first, then 0; 2 alone; 5, 4, 3.
	filters := image(bytes.Join([][]byte{saved(allow), saved(ask, 0), saved(ask), saved(allow), saved(ask, 3), saved(allow, 4)}, nil))
	thread := func(fields ...[]byte) []byte {
		return image(bytes.Join([][]byte{number(1, 1), text(3, []byte("\x0a\x02tc")), text(5, bytes.Join(append([][]byte{number(1, 7)}, fields...), nil))}, nil))
	}
	mode := number(11, 2)
	for name, c := range map[string]struct{ had, want []byte }{
		"core-1.img": {thread(mode, number(12, 1), number(16, 9)), thread(mode, number(12, 0), number(16, 9))},
		"core-2.img": {thread(mode, number(12, 2)), thread()},
		"core-3.img": {thread(mode, number(12, 5)), thread(mode, number(12, 5))},
		"core-4.img": {thread(), thread()},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name string, b []byte) {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write("seccomp.img", filters)
			write(name, c.had)
			if err := dropAskingIn(t, dir); err != nil {
				t.Fatal(err)
			}
			got, _ := os.ReadFile(filepath.Join(dir, name))
			if d := cmp.Diff(c.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			got, _ = os.ReadFile(filepath.Join(dir, "seccomp.img"))
			want := image(bytes.Join([][]byte{saved(allow), saved(ask, 0), saved(ask), saved(allow), saved(ask, 3), saved(allow, 3)}, nil))
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("the filters (-want +got):\n%s", d)
			}
			for what, b := range map[string][]byte{"cut off": c.had[:len(c.had)-1], "a filter that is not there": thread(mode, number(12, 9)), "no image": []byte("x")} {
				write(name, b)
				if err := dropAskingIn(t, dir); !errors.Is(err, errImage) {
					t.Errorf("%s: error %v", what, err)
				}
			}
			write("seccomp.img", image(saved(ask, 0)))
			if err := dropAskingIn(t, dir); !errors.Is(err, errImage) {
				t.Errorf("a chain without an end: error %v", err)
			}
			os.Remove(filepath.Join(dir, "seccomp.img"))
			if err := dropAskingIn(t, dir); err != nil {
				t.Errorf("no filters: %v", err)
			}
		})
	}
}

func dropAskingIn(t *testing.T, dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	return DropAsking(d)
}
