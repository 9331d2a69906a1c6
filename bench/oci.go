package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// config is the bundle that stands for the machine of loop.star: the same
// namespaces, mounts and limits. Capabilities, seccomp and masked paths are left
// out, since msh's machine does nothing about them either.
const config = `{
	"ociVersion": "1.0.0",
	"hostname": "box",
	"process": {"terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": %s},
	"root": {"path": "rootfs", "readonly": false},
	"mounts": [
		{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
		{"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=1m"]},
		{"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
		{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "nodev", "mode=1777"]},
		{"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}
	],
	"linux": {
		"cgroupsPath": %q,
		"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "uts"}, {"type": "ipc"}, {"type": "network"}],
		"resources": {
			"cpu": {"quota": 50000, "period": 100000},
			"memory": {"limit": 268435456},
			"pids": {"limit": 32}
		}
	}
}
`

// container is a bundle, and the runtime it is for.
type container struct {
	id      string
	bundle  string
	flags   []string // the runtime and its global flags
	overlay *overlay
}

// newContainer writes a bundle whose process is argv.
func (b *bench) newContainer(runtime, role string, argv ...string) (*container, error) {
	if _, err := lookPath(runtime); err != nil {
		return nil, err
	}
	id := fmt.Sprintf("msh-bench-%d-%s-%s", os.Getpid(), runtime, role)
	c := &container{id: id, bundle: filepath.Join(b.dir, id)}
	c.flags = []string{runtime, "--root", filepath.Join(b.dir, "state-"+runtime)}
	if runtime == "crun" {
		c.flags = append(c.flags, "--cgroup-manager=cgroupfs") // runc's default
	}
	if err := os.Mkdir(c.bundle, 0o755); err != nil {
		return nil, err
	}
	args, err := json.Marshal(argv)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), fmt.Appendf(nil, config, args, "/"+id), 0o644); err != nil {
		return nil, err
	}
	if c.overlay, err = b.newOverlay(c.bundle); err != nil {
		return nil, err
	}
	b.onCleanUp(c.delete)
	return c, nil
}

// delete ends the container and forgets it, where there is one.
func (c *container) delete() error {
	if _, err := os.Stat(filepath.Join(c.flags[2], c.id)); err != nil {
		return nil
	}
	argv := append(c.flags[1:len(c.flags):len(c.flags)], "delete", "--force", c.id)
	if out, err := exec.Command(c.flags[0], argv...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return nil
}

func (b *bench) ociCommand(c *container, args ...string) (*command, error) {
	return b.newCommand("", append(c.flags[:len(c.flags):len(c.flags)], args...)...)
}

// ociRun measures a container's whole life.
func ociRun(runtime string) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		c, err := b.newContainer(runtime, "true", "/bin/true")
		if err != nil {
			return nil, err
		}
		run, err := b.ociCommand(c, "run", "--bundle", c.bundle, c.id)
		if err != nil {
			return nil, err
		}
		if err := b.checkContainer(runtime); err != nil {
			return nil, err
		}
		return c.overlay.around(run), nil
	}
}

// ociExec measures a program started in a live container.
func ociExec(runtime string) func(*bench) (func() (float64, error), error) {
	return func(b *bench) (func() (float64, error), error) {
		if err := b.checkContainer(runtime); err != nil {
			return nil, err
		}
		c := b.ociLive[runtime]
		cmd, err := b.ociCommand(c, "exec", c.id, "/bin/true")
		if err != nil {
			return nil, err
		}
		return func() (float64, error) { return timed(cmd.once) }, nil
	}
}

// checkContainer starts the container that stays up, from the bundle that is
// timed but for its process, and looks whether it is what it should be.
func (b *bench) checkContainer(runtime string) error {
	if b.ociLive[runtime] != nil {
		return nil
	}
	c, err := b.newContainer(runtime, "live", "/bin/sleep", "3600") // it ends even if the bench is killed
	if err != nil {
		return err
	}
	if err := c.overlay.mount(); err != nil {
		return err
	}
	pidFile := filepath.Join(c.bundle, "pid")
	run, err := b.ociCommand(c, "run", "--detach", "--pid-file", pidFile, "--bundle", c.bundle, c.id)
	if err != nil {
		return err
	}
	if err := run.once(); err != nil {
		return err
	}
	b.ociLive[runtime] = c
	text, err := os.ReadFile(pidFile)
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return err
	}
	return checkMachine(pid)
}
