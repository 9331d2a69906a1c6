package kernel

import (
	"fmt"
	"os"
	"testing"
)

// inMemory is a program with all that can be in /dev/shm: a mapping of a file, one of a
// file without a name, a socket, a pipe. It answers on the socket.
const inMemory = `
import mmap, os, socket
def mapped(name):
    f = os.open(name, os.O_CREAT | os.O_RDWR, 0o640)
    os.ftruncate(f, 1 << 20)
    return mmap.mmap(f, 1 << 20)
kept, gone = mapped("/dev/shm/kept"), mapped("/dev/shm/gone")
os.unlink("/dev/shm/gone")
os.chown("/dev/shm/kept", 7, 8)
os.setxattr("/dev/shm/kept", "trusted.note", b"x")
kept[5000:5004], gone[5000:5004] = b"here", b"none"
os.mkfifo("/dev/shm/pipe")
os.symlink("null", "/dev/nothing")
s = socket.socket(socket.AF_UNIX)
s.bind("/dev/shm/socket")
s.listen()
open("/count", "w").write("ready")
while True:
    who, _ = s.accept()
    kept[0:1], gone[0:1] = bytes([kept[0] + 1]), bytes([gone[0] + 1])
    who.send(b"%s %s %d %d" % (kept[5000:5004], gone[5000:5004], kept[0], gone[0]))
    who.close()
`

// ask has it answer, and reads the file that it has mapped.
const ask = `python3 -c '
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("/dev/shm/socket")
print(s.recv(100).decode(), open("/dev/shm/kept", "rb").read(1)[0])'`

// What is in /dev and /dev/shm is there when the machine wakes, as it was: what processes
// have mapped or are bound to among it.
func TestHibernateTmpfs(t *testing.T) {
	needCriu(t)
	l := newLab(t)
	const look = "cd /dev; stat -c '%n %F %a %u %g %s %t:%T' . * .init shm/*; getfattr -n trusted.note --only-values shm/kept; readlink nothing; grep ' /dev' /proc/mounts | sort; df -B1 --output=size,itotal /dev"
	for name, prepare := range map[string]string{
		"as it was made": "true",
		"larger":         "mount -o remount,size=3m /dev/shm",
		"over it":        "mount -t tmpfs -o mode=1777 other /dev/shm",
		"twice":          "mkdir /again && mount --bind /dev/shm /again",
	} {
		t.Run(name, func(t *testing.T) {
			m := fork(t, l, &Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace"))
			sh(t, m, prepare)
			writeIn(t, m, "/memory.py", inMemory)
			started(t, m, "exec python3 /memory.py")
			eventuallyIn(t, m, "/count", "ready")
			want(t, "before", "here none 1 1 1", sh(t, m, ask))
			before := sh(t, m, look)
			contains(t, before, "shm/kept regular file 640 7 8 1048576")
			file := hibernate(t, m)
			for i := range 2 { // once more from what was woken
				if m = wakeUp(t, l, file, WakeOptions{}); i == 0 {
					file = hibernate(t, m)
				}
			}
			want(t, "woken", before, sh(t, m, look))
			want(t, "answer", "here none 2 2 2", sh(t, m, ask))
			mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", m.Pid()))
			if err != nil {
				t.Fatal(err)
			}
			own := len(m.savedTmpfs(mountLines(string(mounts))))
			if name == "as it was made" && own != 2 {
				t.Errorf("%d of the two are msh's own to save", own)
			}
			if err := m.Destroy(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
