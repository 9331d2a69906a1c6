package main

import (
	"fmt"
	"os"
	"path/filepath"
)

// timedCommand is the sampler of a plain command.
func (b *bench) timedCommand(output string, argv ...string) (func() (float64, error), error) {
	c, err := b.newCommand(output, argv...)
	if err != nil {
		return nil, err
	}
	return func() (float64, error) { return timed(c.once) }, nil
}

// bwrap 0.8 of Debian 12 cannot mount an overlay itself (--overlay came with
// 0.11), so it gets one as crun does.
func (b *bench) bwrap() (func() (float64, error), error) {
	o, err := b.newOverlay(filepath.Join(b.dir, "bwrap"))
	if err != nil {
		return nil, err
	}
	c, err := b.newCommand("", "bwrap", "--unshare-all", "--hostname", "box", "--bind", o.root, "/", "--proc", "/proc", "--dev", "/dev", "/bin/true")
	if err != nil {
		return nil, err
	}
	return o.around(c), nil
}

func (b *bench) nsenter() (func() (float64, error), error) {
	s, err := b.startScript()
	if err != nil {
		return nil, err
	}
	return b.timedCommand("", "nsenter", "-t", fmt.Sprint(s.pid), "-a", "/bin/true")
}

func (b *bench) unshare() (func() (float64, error), error) {
	return b.timedCommand("", "unshare", "--pid", "--fork", "--mount", "--mount-proc", "--uts", "--ipc", "--net", filepath.Join(b.lower, "bin/true"))
}

const helloSource = `package main

import "fmt"

func main() { fmt.Println("hello") }
`

func (b *bench) goHello() (func() (float64, error), error) {
	source := filepath.Join(b.dir, "hello.go")
	if err := os.WriteFile(source, []byte(helloSource), 0o644); err != nil {
		return nil, err
	}
	program := filepath.Join(b.dir, "hello", "hello")
	if err := b.goBuild(program, source); err != nil {
		return nil, err
	}
	return b.timedCommand("hello\n", program)
}
