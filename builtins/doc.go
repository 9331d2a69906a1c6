// Package builtins is the language: the words that scripts use to make and use
// machines. Each turns its arguments into plain data of package kernel, and what
// comes back into Starlark values; it makes no system call itself.
//
// A word is one Go value: doc, parameters, an example that the tests run, and
// the function. One kind of resource, one file. resourceWords and methodWords
// list them, in order.
//
//	s, err := builtins.New(builtins.Options{Host: host, Lab: "demo", Stdout: os.Stdout})
//	in := interp.New(interp.Options{Words: s.Words(), Values: s.Values()})
//	err = in.RunFile(ctx, "demo.star")
//	err = s.Close(ctx)
package builtins
