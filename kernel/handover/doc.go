// Package handover moves something that runs from one host to another over a
// line that may break at any moment, so that never two of it run and, once the
// two hosts can talk again, exactly one does. It knows no machines: what is moved
// is a Giver's here and a Taker's there, and the line is any two streams of bytes,
// such as the standard input and output of a stock ssh client.
//
//	giver                                  taker
//	─────                                  ─────
//	hello: version, host, criu ──────────> hello ("MSH-HANDOVER" line, then frames)
//	       <────────────────────────────── hello
//	offer: token, name, layers ──────────> what of it is here already?
//	       <────────────────────────────── want: the layers that are not, or a refusal
//	data … end, for each layer ──────────>
//	data … end: the snapshot ────────────> make all of it anew, but let nothing run
//	(its giver stops it on the way, and
//	keeps it stopped)
//	       <────────────────────────────── ready
//	[1] write down: given to HOST, token
//	go ──────────────────────────────────> [2] write down: token runs here
//	                                       let it run
//	       <────────────────────────────── running
//	end what is stopped here
//	thanks ──────────────────────────────> forget the token
//
// # A broken line
//
// Before [1] the giver has promised nothing: it lets its own go on. The taker runs
// nothing before it has got a go, so at the line's end it undoes what it has.
//
// After [1] the giver cannot know whether the go has arrived. It keeps its own
// stopped and asks, over new connections, until it gets an answer:
//
//	ask: token ──────────────────────────> [3] write down: token will not run here,
//	                                       unless [2] stands there already
//	       <────────────────────────────── running, or not
//	end what is stopped here, or let it go on
//	thanks ──────────────────────────────> forget the token
//
// [2] and [3] are the same file, made by link(2), which fails where it is there:
// of the two one comes first, for ever. So a go that is still on its way when the
// question is answered finds [3] and is refused. A taker that fails after [2] (the
// kernel, or criu, lets it down) has nothing left running when it says so.
//
// What no protocol can give (the two generals' problem): if the line breaks
// between go and running and the other host is never reached again, the giver
// cannot tell, and none runs here: it stays stopped, and is written down as such,
// until somebody who knows better decides (Doubt).
//
// Both sides send a frame at least every few seconds, and take a line that is
// silent for longer for broken: a peer that has gone without a word is noticed.
package handover
