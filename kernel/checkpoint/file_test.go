package checkpoint

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A section of bytes becomes a file, with holes where it has zeros, and one that has
// more than it may is refused.
func TestUnpackFile(t *testing.T) {
	content := append(append(pages(1<<20), make([]byte, 5<<20)...), pages(1000)...)
	content = append(content, make([]byte, 3<<20)...)
	for _, most := range []int64{0, int64(len(content)), int64(len(content)) - 1} {
		var file bytes.Buffer
		w, err := NewWriter(&file, Options{})
		check(t, err)
		m := manifest("m")
		m.Machines[0].Bounds = &Bounds{MemoryBytes: most}
		check(t, w.Manifest(m))
		s, err := w.Stream(t.Context(), "m", "pages-1")
		check(t, err)
		_, err = s.Write(content)
		check(t, err)
		check(t, s.Close())
		_, err = w.Commit()
		check(t, err)

		r, err := NewReader(&file)
		check(t, err)
		_, err = r.Next()
		check(t, err)
		out, err := os.Create(filepath.Join(t.TempDir(), "out"))
		check(t, err)
		defer out.Close()
		err = r.UnpackFile(t.Context(), int(out.Fd()))
		if most == int64(len(content))-1 {
			if !errors.Is(err, ErrHostile) {
				t.Errorf("bound %d: %v", most, err)
			}
			continue
		}
		check(t, err)
		got, err := os.ReadFile(out.Name())
		check(t, err)
		if !bytes.Equal(got, content) {
			t.Errorf("bound %d: %d bytes, not those that were written", most, len(got))
		}
		var st unix.Stat_t
		check(t, unix.Fstat(int(out.Fd()), &st))
		if st.Blocks*512 > 2<<20 {
			t.Errorf("it takes %d bytes, where 8 MiB are zeros", st.Blocks*512)
		}
	}
}
