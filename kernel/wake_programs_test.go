package kernel

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const goServerEnv = "MSH_TEST_GO_SERVER" // this is a Go program that serves: see goServer

func init() {
	if os.Getenv(goServerEnv) != "" {
		goServer()
	}
}

// goServer counts requests, in memory only.
func goServer() {
	n := 0
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { n++; fmt.Fprintln(w, n) })
	fmt.Fprintln(os.Stderr, http.ListenAndServe(":80", nil))
	os.Exit(1)
}

// programs are servers of the real world, each with a client that is connected all
// the time and checks every answer.
var programs = []struct {
	name    string
	given   []Resource
	prepare func(*testing.T, *Machine)
	argv    []string
	env     map[string]string
	user    string
	port    int
	client  string // python: open(address) connects, ask(n) asks for the nth time and checks the answer
}{
	{
		name: "redis", port: 6379,
		argv: []string{"redis-server", "--save", "", "--protected-mode", "no", "--bind", "0.0.0.0"},
		client: `
def open_(a):
    global s, f
    s = socket.create_connection((a, 6379)); f = s.makefile("rb")
    for i in range(1000): s.sendall(b"SET key%d value%d\r\n" % (i, i)); assert f.readline() == b"+OK\r\n"
def ask(n):
    s.sendall(b"INCR n\r\n"); assert f.readline() == b":%d\r\n" % n
    s.sendall(b"GET key%d\r\n" % (n % 1000)); f.readline(); assert f.readline() == b"value%d\r\n" % (n % 1000)`,
	},
	{
		name: "nginx", port: 80,
		prepare: func(t *testing.T, m *Machine) {
			writeIn(t, m, "/nginx.conf", "user root; daemon off; worker_processes 2; pid /run/nginx.pid; error_log stderr; events {}\n"+
				"http { access_log off; keepalive_requests 1000000; server { listen 80; root /site; } }\n")
			output(t, m, "mkdir /site; head -c 100000 /dev/zero | tr '\\0' x >/site/file")
		},
		argv: []string{"nginx", "-c", "/nginx.conf"},
		client: `
import http.client
def open_(a):
    global c
    c = [http.client.HTTPConnection(a) for _ in range(4)]
def ask(n):
    h = c[n % 4]
    h.request("GET", "/file"); r = h.getresponse(); b = r.read()
    assert r.status == 200 and b == b"x" * 100000, (r.status, len(b))`,
	},
	{
		name: "go", port: 80, env: map[string]string{goServerEnv: "1"},
		prepare: func(t *testing.T, m *Machine) {
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			if err := m.CopyIn(t.Context(), exe, "/server"); err != nil {
				t.Fatal(err)
			}
		},
		argv: []string{"/server"},
		client: `
import http.client
def open_(a):
    global c
    c = http.client.HTTPConnection(a)
def ask(n):
    c.request("GET", "/"); r = c.getresponse(); b = r.read()
    assert b == b"%d\n" % n, b`,
	},
	{
		name: "python", port: 80,
		argv: []string{"python3", "-c", `
import http.server
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen = []
    def do_GET(self):
        self.seen.append(self.path); b = b"%d" % len(self.seen)
        self.send_response(200); self.send_header("Content-Length", str(len(b))); self.end_headers(); self.wfile.write(b)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("", 80), H).serve_forever()`},
		client: `
import http.client
def open_(a):
    global c
    c = http.client.HTTPConnection(a)
def ask(n):
    c.request("GET", "/%d" % n); r = c.getresponse(); b = r.read()
    assert b == b"%d" % n, b`,
	},
	{
		name: "pipeline", port: 0,
		argv: []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; done | sed -u 's/$/ x/' | while read n x; do echo \"$n $x\" >/seen; sleep 0.005; done"},
	},
	{
		name: "postgresql", port: 5432, user: "postgres",
		// Without CAP_SYS_RESOURCE criu cannot save what another user than root runs,
		// but in ids of the machine's own it can.
		given: []Resource{&Uidspace{}},
		prepare: func(t *testing.T, m *Machine) {
			output(t, m, "mkdir -p /var/run/postgresql /pg; chown postgres /pg /var/run/postgresql; ln -sf /usr/lib/postgresql/*/bin/* /usr/local/bin/")
			r, err := m.Run(t.Context(), &Command{Argv: []string{"initdb", "-D", "/pg", "-A", "trust", "--no-sync"}, User: "postgres"}, nil, 4*long)
			if err != nil || r.Code != 0 {
				t.Fatal(r, err)
			}
			output(t, m, "echo 'host all all 0.0.0.0/0 trust' >>/pg/pg_hba.conf")
		},
		argv: []string{"postgres", "-D", "/pg", "-c", "listen_addresses=*", "-c", "fsync=off"},
		client: `
def read():
    kind = f.read(1); n = struct.unpack("!I", f.read(4))[0]; return kind, f.read(n - 4)
def query(q):
    b = q.encode() + b"\0"; s.sendall(b"Q" + struct.pack("!I", len(b) + 4) + b)
    out = None
    while True:
        k, b = read()
        assert k != b"E", b
        if k == b"D": out = b[6:]
        if k == b"Z": return out
def open_(a):
    global s, f
    s = socket.create_connection((a, 5432)); f = s.makefile("rb")
    b = struct.pack("!I", 196608) + b"user\0postgres\0database\0postgres\0\0"
    s.sendall(struct.pack("!I", len(b) + 4) + b)
    while read()[0] != b"Z": pass
    query("create table t (n int)")
    query("create temp table mine (n int)") # of this connection's process alone
def ask(n):
    query("insert into t values (%d)" % n); query("insert into mine values (%d)" % n)
    got = query("select (select count(*) from t) || ' ' || (select sum(n) from mine)")
    assert got == b"%d %d" % (n, n * (n + 1) // 2), got`,
	},
}

const asking = `
import socket, struct, sys, time, traceback
try:
    %s
    open_(sys.argv[1])
    n = 0
    while True:
        n += 1
        ask(n)
        open("/got", "w").write("%%d\n" %% n)
        time.sleep(0.002)
except BaseException:
    open("/got", "w").write(traceback.format_exc()); raise
`

// Servers hibernate with their clients in the midst of it, wake, and nobody has lost
// anything.
func TestPrograms(t *testing.T) {
	needCriu(t)
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			if p.given != nil && os.Getenv("MSH_VM") != "" {
				t.Skip("owners cannot be shifted on the VM's root, a ramfs")
			}
			l := newLab(t)
			lan, err := l.VNet(t.Context(), l.Host(), &VNetSpec{Name: "lan", Subnets: prefixes("10.7.0.0/24")})
			if err != nil {
				t.Fatal(err)
			}
			m := forkCalled(t, l, "server", append([]Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("ipcspace"), &Netif{VNet: lan.Name()}}, p.given...)...)
			if p.prepare != nil {
				p.prepare(t, m)
			}
			server, err := m.Spawn(t.Context(), &Command{Argv: p.argv, Env: p.env, User: p.user}, "", RestartNo)
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if t.Failed() {
					log, _ := server.Log()
					t.Logf("the server said: %s", log)
				}
			}()
			if p.port == 0 {
				eventuallyIn(t, m, "/seen", "x")
				file := hibernate(t, m)
				w := wakeUp(t, l, file, WakeOptions{})
				var a, b int
				fmt.Sscan(readIn(t, w, "/seen"), &a)
				for end := time.Now().Add(long); b < a+10 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
					fmt.Sscan(readIn(t, w, "/seen"), &b)
				}
				if a == 0 || b < a+10 {
					t.Errorf("the pipeline was at %d, and is at %d", a, b)
				}
				return
			}
			if err := m.WaitPort(t.Context(), p.port, long); err != nil {
				t.Fatal(err)
			}
			client := onNet(t, l, lan, "client")
			writeIn(t, client, "/ask.py", fmt.Sprintf(asking, strings.ReplaceAll(strings.TrimSpace(p.client), "\n", "\n    ")))
			started(t, client, "exec python3 /ask.py "+m.Address())
			eventuallyIn(t, client, "/got", "\n")
			got(t, client, 20)
			for range 2 {
				file := hibernate(t, m)
				m = wakeUp(t, l, file, WakeOptions{})
				got(t, client, got(t, client, 0)+20)
			}
			// And both at once.
			file := filepath.Join(t.TempDir(), "both")
			if _, err := SnapshotFile(t.Context(), file, []*Machine{m, client}, SnapshotOptions{Hibernate: true}); err != nil {
				explainCriu(t, err)
				t.Fatal(err)
			}
			all, err := l.WakeFile(t.Context(), file, WakeOptions{})
			if err != nil {
				explainCriu(t, err)
				t.Fatal(err)
			}
			got(t, all[1], got(t, all[1], 0)+20)
		})
	}
}
