package ledger

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, l *Ledger, args ...string) {
	t.Helper()
	for _, a := range args {
		if err := l.Write("op", a); err != nil {
			t.Fatal(err)
		}
	}
}

// undone undoes all, and says in which order. Those in failing fail.
func undone(t *testing.T, l *Ledger, failing ...string) (order []string, err error) {
	t.Helper()
	err = l.Undo(func(e Entry) error {
		var arg string
		if err := json.Unmarshal(e.Arg, &arg); err != nil {
			t.Fatal(err)
		}
		order = append(order, arg)
		for _, f := range failing {
			if arg == f {
				return fmt.Errorf("%s fails", arg)
			}
		}
		return nil
	})
	return order, err
}

func same(t *testing.T, what string, want, got any) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// In reverse, past errors, and again only what has failed.
func TestUndo(t *testing.T) {
	l, err := Create(filepath.Join(t.TempDir(), "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	write(t, l, "a", "b", "c", "d")
	order, err := undone(t, l, "b", "d")
	same(t, "order", []string{"d", "c", "b", "a"}, order)
	if err == nil {
		t.Fatal("no error")
	}
	same(t, "errors", "d fails\nb fails", err.Error())
	order, err = undone(t, l)
	same(t, "the second time", []string{"d", "b"}, order)
	if err != nil {
		t.Error(err)
	}
	order, _ = undone(t, l)
	same(t, "the third time", []string(nil), order)
}

// Another process reads it; what was being written when its writer died has not
// been done.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	l, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, l, "a", "b\nwith a line's end")
	l.Close()
	if _, err := Create(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("created over another: %v", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString(`{"Op":"op","Arg":"to`)
	f.Close()

	if l, err = Open(path); err != nil {
		t.Fatal(err)
	}
	write(t, l, "c")
	l.Close()
	if l, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	order, err := undone(t, l)
	same(t, "order", []string{"c", "b\nwith a line's end", "a"}, order)
	if err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("no JSON\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err = Open(path); err != nil || l.Len() != 0 {
		t.Errorf("lines that are no entries: %v, %v", l.entries, err)
	}
	l.Close()
	if _, err := Open(path + "-not-there"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opened what is not there: %v", err)
	}
}

// A full disk must stop the effect, not the undo.
func TestWriteFails(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip(err)
	}
	l := &Ledger{file: f}
	defer l.Close()
	if err := l.Write("op", "a"); err == nil {
		t.Error("written to a full disk")
	}
	if order, err := undone(t, l); len(order) > 0 || err != nil {
		t.Errorf("undone: %v, %v", order, err)
	}
	if err := l.Write("op", func() {}); err == nil {
		t.Error("wrote a function")
	}
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"Op":"cgroup","Arg":{"Path":"/msh.l.m"}}` + "\n"))
	f.Add([]byte("{}\n{"))
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "ledger")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := Open(path)
		if err != nil {
			return
		}
		defer l.Close()
		if err := l.Write("op", "last"); err != nil {
			t.Fatal(err)
		}
		first := ""
		l.Undo(func(e Entry) error {
			if first == "" {
				first = string(e.Arg)
			}
			return nil
		})
		if first != `"last"` {
			t.Errorf("the last entry is %s", first)
		}
	})
}

func TestBook(t *testing.T) {
	b := &Book{filepath.Join(t.TempDir(), "state", ".book")}
	claims := func(kind string) []Claim {
		c, err := b.Claims(kind)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	same(t, "a book that is not there", []Claim(nil), claims(""))
	unlock, err := b.Lock()
	if err != nil {
		t.Fatal(err)
	}
	one, two := Claim{Kind: "cpu", Name: "1", Owner: "l/a"}, Claim{Kind: "uid", Name: "70000", Amount: 5, Owner: "l/a", From: "l/b"}
	for _, c := range []Claim{one, two} {
		if _, err := b.Take(c); err != nil {
			t.Fatal(err)
		}
	}
	thief := one
	thief.Owner = "l/thief"
	holder, err := b.Take(thief)
	if !errors.Is(err, ErrTaken) {
		t.Errorf("taken twice: %v", err)
	}
	same(t, "holder", one, holder)
	if err := b.Release(thief); err != nil { // not the thief's: stays
		t.Error(err)
	}
	same(t, "all", []Claim{one, two}, claims(""))
	same(t, "of a kind", []Claim{two}, claims("uid"))
	for range 2 {
		if err := b.Release(one); err != nil {
			t.Error(err)
		}
	}
	same(t, "one released", []Claim{two}, claims(""))
	unlock()
	b.Tidy()
	same(t, "a book in use", []Claim{two}, claims(""))

	if err := b.Release(two); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(b.Dir, ".new"), []byte(`{"Ki`), 0o600); err != nil { // a writer died
		t.Fatal(err)
	}
	same(t, "a half-written claim", []Claim(nil), claims(""))
	b.Tidy()
	if _, err := os.Stat(b.Dir); !os.IsNotExist(err) {
		t.Errorf("an unused book: %v", err)
	}
}

// Many take the same thing, and tidy up: one gets it each time.
func TestBookRace(t *testing.T) {
	dir := filepath.Join(t.TempDir(), ".book")
	var wg sync.WaitGroup
	var inside, taken int
	for i := range 16 {
		wg.Go(func() {
			b := &Book{dir}
			for range 50 {
				unlock, err := b.Lock()
				if err != nil {
					t.Error(err)
					return
				}
				inside++
				if inside != 1 {
					t.Error("two have the lock")
				}
				c := Claim{Kind: "cpu", Name: "1", Owner: fmt.Sprint(i)}
				if _, err := b.Take(c); err != nil {
					t.Error(err)
				}
				taken++
				if err := b.Release(c); err != nil {
					t.Error(err)
				}
				inside--
				unlock()
				b.Tidy()
			}
		})
	}
	wg.Wait()
	same(t, "taken", 16*50, taken)
}
