# The same tree in Mininet, with Linux bridges for switches and no controller.
import sys, time
from mininet.net import Mininet
from mininet.nodelib import LinuxBridge
from mininet.topolib import TreeTopo
from mininet.log import setLogLevel

setLogLevel('error')
fanout = int(sys.argv[1])
begin = time.time()
net = Mininet(topo=TreeTopo(depth=2, fanout=fanout), switch=LinuxBridge, controller=None)
net.start()
up = time.time() - begin
said = net.hosts[0].cmd('ping -c1 -W10 ' + net.hosts[-1].IP())
begin = time.time()
net.stop()
down = time.time() - begin
if ' 0% packet loss' not in said:
    sys.exit('the first does not reach the last: ' + said)
print(up * 1e3, down * 1e3)
