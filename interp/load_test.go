package interp

import (
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"
)

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for name, src := range map[string]string{
		"lib/a.star":     "load('../b.star', 'b')\nload('sub/c.star', 'c')\na = 'a' + b + c",
		"lib/sub/c.star": "print('c runs')\nc = 'c'",
		"b.star":         "load('lib/sub/c.star', 'c')\nb = 'b' + c\nlist = []",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	stdlib := fstest.MapFS{
		"x.star": {Data: []byte("load('y.star', 'y')\nx = y + 1")},
		"y.star": {Data: []byte("y = 1")},
	}
	tests := []struct{ name, src, want string }{
		{"relative, once", "load('lib/a.star', 'a')\nload('./lib/../b.star', 'b')\nprint(a, b)", "c runs\nabcc bc\n"},
		{"absolute", "load('" + dir + "/b.star', 'b')\nprint(b)", "c runs\nbc\n"},
		{"library", "load('@msh//x.star', 'x')\nload('@msh//./y.star', 'y')\nprint(x, y)", "2 1\n"},
		{"frozen", "load('b.star', 'list')\nprint(catch(lambda: list.append(1)).ok)", "c runs\nFalse\n"},
		{"outside the library", "load('@msh//../secret.star', 'x')", `test.star:1:1: load "@msh//../secret.star": no such file in the standard library: it has x.star, y.star
traceback (most recent call last):
  test.star:1:1: in <toplevel>
    1 | load('@msh//../secret.star', 'x')
      | ^
`},
		{"a folder", "load('lib', 'x')", `test.star:1:1: load "lib": lib: is a directory
traceback (most recent call last):
  test.star:1:1: in <toplevel>
    1 | load('lib', 'x')
      | ^
`},
		{"no such name", "load('b.star', 'bb')", `c runs
test.star:1:1: load: name bb not found in module b.star
traceback (most recent call last):
  test.star:1:1: in <toplevel>
    1 | load('b.star', 'bb')
      | ^
`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := runSource(t, Options{Stdlib: stdlib}, test.src); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
	if got, want := runSource(t, Options{}, "load('@msh//x.star', 'x')")[:57], `test.star:1:1: load "@msh//x.star": there is no standard `; got != want {
		t.Errorf("without a library: got %s, want %s", got, want)
	}
}
