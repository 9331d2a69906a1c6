package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const benchSize = 256 << 20

// benchImages makes images of 256 MiB: half text-like, a quarter zeros, a quarter
// random, page by page ("mixed"); or all of one kind.
func benchImages(b *testing.B, dir, kind string) {
	rnd := rand.NewChaCha8([32]byte{})
	text := pages(4 << 20)
	f, err := os.Create(filepath.Join(dir, "pages-1.img"))
	check(b, err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	for at := 0; at < benchSize; at += len(buf) {
		for p := 0; p < len(buf); p += 16384 {
			page := buf[p : p+16384]
			switch n := (at + p) / 16384 % 4; {
			case kind == "zero" || kind == "mixed" && n == 2:
				clear(page)
			case kind == "random" || kind == "mixed" && n == 3:
				rnd.Read(page)
			default:
				copy(page, text[(at+p)%len(text):])
			}
		}
		_, err := f.Write(buf)
		check(b, err)
	}
}

// BenchmarkImages packs and unpacks in the directory CHECKPOINT_BENCH, or a
// temporary one, beside cp of the same.
func BenchmarkImages(b *testing.B) {
	base := os.Getenv("CHECKPOINT_BENCH")
	for _, kind := range []string{"mixed", "text", "random", "zero"} {
		dir, err := os.MkdirTemp(base, "checkpoint-bench")
		check(b, err)
		defer os.RemoveAll(dir)
		src := filepath.Join(dir, "src")
		check(b, os.Mkdir(src, 0o755))
		benchImages(b, src, kind)
		srcFD := dirFD(b, src)
		path := filepath.Join(dir, "s.msh")
		b.Run(kind+"/cp", func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				check(b, exec.Command("cp", "--reflink=never", "--sparse=never", src+"/pages-1.img", dir+"/copy").Run())
				b.StopTimer()
				os.Remove(dir + "/copy")
				b.StartTimer()
			}
		})
		for _, level := range []Level{LevelNone, LevelFast, LevelDefault} {
			pack := func(b *testing.B, w *Writer) {
				check(b, w.Manifest(manifest("m")))
				check(b, w.Images(context.Background(), "m", SectionMemory, srcFD))
			}
			name := fmt.Sprintf("%s/level %d/", kind, level)
			b.Run(name+"pack", func(b *testing.B) {
				b.SetBytes(benchSize)
				for b.Loop() {
					f, err := os.Create(path)
					check(b, err)
					w, err := NewWriter(f, Options{Level: level})
					check(b, err)
					pack(b, w)
					info, err := w.Commit()
					check(b, err)
					f.Close()
					b.ReportMetric(float64(info.Size)/benchSize, "ratio")
				}
			})
			b.Run(name+"create+sync", func(b *testing.B) {
				b.SetBytes(benchSize)
				for b.Loop() {
					w, err := Create(path, Options{Level: level})
					check(b, err)
					pack(b, w)
					_, err = w.Commit()
					check(b, err)
				}
			})
			b.Run(name+"unpack", func(b *testing.B) {
				b.SetBytes(benchSize)
				for b.Loop() {
					dst := filepath.Join(dir, "dst")
					check(b, os.Mkdir(dst, 0o755))
					r, err := Open(path)
					check(b, err)
					_, err = r.Next()
					check(b, err)
					d, err := os.Open(dst)
					check(b, err)
					check(b, r.UnpackImages(context.Background(), int(d.Fd()), UnpackOptions{}))
					if _, err := r.Next(); err != io.EOF {
						b.Fatal(err)
					}
					r.Close()
					d.Close()
					b.StopTimer()
					os.RemoveAll(dst)
					b.StartTimer()
				}
			})
			b.Run(name+"verify", func(b *testing.B) {
				b.SetBytes(benchSize)
				for b.Loop() {
					_, err := Verify(context.Background(), path)
					check(b, err)
				}
			})
		}
	}
}

// BenchmarkSmallFiles packs and unpacks an upper layer of many small files.
func BenchmarkSmallFiles(b *testing.B) {
	src := b.TempDir()
	for i := range 5000 {
		d := fmt.Sprintf("%s/%d", src, i/50)
		os.MkdirAll(d, 0o755)
		check(b, os.WriteFile(fmt.Sprintf("%s/%d", d, i), pages(i%4000), 0o644))
	}
	var file []byte
	b.Run("pack", func(b *testing.B) {
		for b.Loop() {
			file = write(b, Options{}, src, "")
		}
	})
	b.Run("unpack", func(b *testing.B) {
		for b.Loop() {
			dst := b.TempDir()
			check(b, readAll(bytes.NewReader(file), dst, UnpackOptions{}))
		}
	})
	b.Run("tar", func(b *testing.B) {
		for b.Loop() {
			check(b, exec.Command("tar", "cf", src+".tar", "-C", src, ".").Run())
		}
	})
	b.Run("untar", func(b *testing.B) {
		for b.Loop() {
			check(b, exec.Command("tar", "xf", src+".tar", "-C", b.TempDir()).Run())
		}
	})
}
