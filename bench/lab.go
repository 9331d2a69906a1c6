package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

//go:embed lab.star
var labSource []byte

//go:embed lab.py
var mininetSource []byte

// labPatience is how long a lab may take: Mininet's needs a minute or two.
const labPatience = 10 * time.Minute

// settling is how long it is quiet before a lab: the kernel takes a thousand
// network namespaces apart for seconds after their lab has ended.
const settling = 5 * time.Second

// both measures two things at a time, for samplers that want one each: what a
// run has shown of the other is kept until that is asked for.
type both struct {
	rest time.Duration // before each run
	run  func() ([2]float64, error)
	left [2][]float64
}

func (p *both) sample(i int) func() (float64, error) {
	return func() (float64, error) {
		if len(p.left[i]) == 0 {
			time.Sleep(p.rest)
			v, err := p.run()
			if err != nil {
				return 0, err
			}
			for j := range v {
				p.left[j] = append(p.left[j], v[j])
			}
		}
		v := p.left[i][0]
		p.left[i] = p.left[i][1:]
		return v, nil
	}
}

// pair is the one of that name, made when it is first asked for.
func (b *bench) pair(name string, rest time.Duration, run func() ([2]float64, error)) *both {
	if b.pairs == nil {
		b.pairs = map[string]*both{}
	}
	if b.pairs[name] == nil {
		b.pairs[name] = &both{rest: rest, run: run}
	}
	return b.pairs[name]
}

const (
	up = iota
	down
)

// ourLab measures a lab of fanout times each machines: from inside the script how
// long it takes to come up, from outside how long the end of msh takes with it.
func ourLab(what, fanout, each int, family string, per float64) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		msh, err := b.msh()
		if err != nil {
			return nil, err
		}
		file := filepath.Join(b.dir, "lab.star")
		if err := os.WriteFile(file, labSource, 0o644); err != nil {
			return nil, err
		}
		name := fmt.Sprint("msh ", fanout, each, family)
		sample := b.pair(name, settling, func() ([2]float64, error) { return runLab(msh, file, fmt.Sprint(fanout), fmt.Sprint(each), family) }).sample(what)
		return func() (float64, error) {
			v, err := sample()
			return v / per, err
		}, nil
	}
}

func runLab(argv ...string) (v [2]float64, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), labPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var errText strings.Builder
	cmd.Stderr = &errText
	out, err := cmd.StdoutPipe()
	if err != nil {
		return v, err
	}
	if err := cmd.Start(); err != nil {
		return v, err
	}
	line, readErr := bufio.NewReader(out).ReadString('\n')
	begin := time.Now()
	err = errors.Join(readErr, cmd.Wait())
	v[down] = float64(time.Since(begin)) / 1e6
	if err == nil {
		_, err = fmt.Sscan(line, &v[up])
	}
	if err != nil {
		return v, fmt.Errorf("%w\n%s", err, errText.String())
	}
	return v, nil
}

// debianPython is the one that Mininet is installed for.
const debianPython = "/usr/bin/python3"

// mininetLab measures Mininet's from inside its script, without Python's start.
func mininetLab(what, fanout int) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		if _, err := lookPath("mn"); err != nil {
			return nil, err
		}
		if _, err := lookPath("brctl"); err != nil { // of its Linux bridges
			return nil, err
		}
		file := filepath.Join(b.dir, "lab.py")
		if err := os.WriteFile(file, mininetSource, 0o644); err != nil {
			return nil, err
		}
		return b.pair(fmt.Sprint("mininet ", fanout), settling, func() (v [2]float64, err error) {
			ctx, cancel := context.WithTimeout(context.Background(), labPatience)
			defer cancel()
			cmd := exec.CommandContext(ctx, debianPython, file, fmt.Sprint(fanout))
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			out, err := cmd.Output()
			if err != nil {
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					err = fmt.Errorf("%w\n%s", err, exit.Stderr)
				}
				return v, err
			}
			_, err = fmt.Sscan(string(out), &v[up], &v[down])
			return v, err
		}).sample(what), nil
	}
}
