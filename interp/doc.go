// Package interp runs the scripts of msh. It knows Starlark and nothing of machines: those are words,
// which the caller brings.
//
// # Phases
//
// A file goes through these, and the REPL's inputs do too:
//
//	parse     syntax.FileOptions.Parse, with one set of options for all
//	rewrite   calls get the position of the name that is called; in a dry run what branches or compares
//	          asks first whether it may (dry.go); in the REPL globals move into the session (session.go)
//	resolve   starlark.FileProgram, with names that nothing else declares; misspellings get a suggestion
//	run       on a thread that carries a context; builtins watch it, and its end cancels the thread
//
// An error of any phase goes through Format, which gives it a position, the traceback across files and threads,
// the source line, and a hint where there is one.
//
// # Words
//
// A Word is one builtin in one Go value: function, doc, parameters, example. Here is a whole one:
//
//	greet := &interp.Word{
//		Name: "greet",
//		Doc:  "Greets someone.",
//		Params: []interp.Param{
//			{Name: "who", Type: "string", Required: true, Pos: true, Doc: "whom to greet"},
//			{Name: "wait", Type: "duration", Default: `"0s"`, Doc: "how long to think first"},
//		},
//		Returns: "The greeting.",
//		Example: `print(greet("world"))`,
//		Output:  "hello, world\n",
//		Fn: func(c *interp.Call) (starlark.Value, error) {
//			var who string
//			var wait interp.Duration
//			if err := c.Unpack(&who, &wait); err != nil {
//				return nil, err
//			}
//			return starlark.String("hello, " + who), nil
//		},
//	}
//
// and a program that has a script use it:
//
//	in := interp.New(interp.Options{Words: []*interp.Word{greet}, Stdlib: stdlib.FS})
//	err := in.RunFile(ctx, "hello.star")
//	err = errors.Join(err, in.Close(context.WithoutCancel(ctx))) // what the script deferred
//	if err != nil {
//		fmt.Fprint(os.Stderr, in.FormatError(err))
//	}
//
// # Threads
//
// A Starlark thread runs on one goroutine. Functions that run beside others (parallel), or are to be cancelled
// apart from their caller, have a thread of their own, from CallFn; values that two threads can reach are frozen.
// Context ends for all threads of a run at once.
//
// # Dry runs
//
// With Options.Dry, a word whose result only running can tell returns Unknown. It prints, and passes through
// calls, attributes and arithmetic; a script that decides by it stops with an error that says where.
package interp
