package kernel

import (
	"strings"
	"testing"
)

// unameAsking is a program whose threads, and children, ask for the kernel's names again and
// again, one of which is always at it.
const unameAsking = `
import os, threading, time
def ask(name):
    i = 0
    while True:
        u = os.uname(); i += 1
        open("/new." + name, "w").write("%s %s %s %s %d" % (u.sysname, u.nodename, u.release, u.machine, i))
        os.rename("/new." + name, "/said." + name)
if os.fork() == 0: ask("child")
threading.Thread(target=ask, args=["thread"], daemon=True).start()
ask("main")
`

// A machine whose uname msh answers is saved, and wakes with somebody who answers: what
// runs in it, whatever comes in, and the files that tell the same; as often as it sleeps.
func TestHibernateUname(t *testing.T) {
	needCriu(t)
	for name, more := range map[string][]Resource{"plain": nil, "confined": {atLevel(2)}, "ids": {&Uidspace{}, atLevel(1)}} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			m := fork(t, l, append([]Resource{&Root{Source: "/", Write: "overlay"}, space("pidspace"), space("netspace"), space("ipcspace"),
				&Uname{Sysname: "Plan9", Nodename: "gnot", Release: "4.0", Machine: "mips"}}, more...)...)
			writeIn(t, m, "/ask.py", unameAsking)
			started(t, m, "exec python3 /ask.py")
			const look = "uname -snrm; cat /proc/sys/kernel/osrelease; cut -d' ' -f1-3 /proc/version"
			const says = "Plan9 gnot 4.0 mips\n4.0\nPlan9 version 4.0"
			counted := func(who string) string { return strings.Join(strings.Fields(readIn(t, m, "/said."+who))[:4], " ") }
			all := []string{"main", "thread", "child"}
			for _, who := range all {
				eventuallyIn(t, m, "/said."+who, "Plan9")
			}
			before := ways(t, m)
			for range 2 {
				m = wakeUp(t, l, hibernate(t, m), WakeOptions{})
				for way, got := range ways(t, m) {
					want(t, "by "+way, before[way], got)
				}
				want(t, "run", says, sh(t, m, look))
				for _, who := range all {
					sh(t, m, "rm /said."+who)
				}
				for _, who := range all {
					eventuallyIn(t, m, "/said."+who, "Plan9")
					want(t, who, "Plan9 gnot 4.0 mips", counted(who))
				}
			}
			if err := m.Set(&Uname{Release: "5.0"}); err != nil {
				t.Fatal(err)
			}
			eventuallyIn(t, m, "/said.thread", "Plan9 gnot 5.0 mips")
			want(t, "set", "5.0", sh(t, m, "cat /proc/sys/kernel/osrelease"))
			destroy(t, m)
		})
	}
}
