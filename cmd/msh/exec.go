package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"msh/interp"
	"msh/kernel"
)

func (a *app) execCommand() *cobra.Command {
	var command kernel.Command
	var env []string
	c := &cobra.Command{
		Use:   "exec MACHINE -- COMMAND [ARG…]",
		Short: "run a command in a machine",
		Long: `Runs a command in a machine, on msh's own streams, and exits with its code: 127 where there
is no such program, 126 where it cannot be executed. On a terminal the command gets one of
the machine's own. Signals are passed on.`,
		Example: "  msh exec web -- ps aux\n  tar c . | msh exec web -w /srv -- tar x",
		RunE: func(c *cobra.Command, args []string) error {
			machine, argv, err := execArgs(c, args)
			if err != nil {
				return err
			}
			command.Argv = argv
			if command.Env, err = parseEnv(c, env); err != nil {
				return err
			}
			return a.exec(c, machine, &command)
		},
	}
	c.Flags().SetInterspersed(false)
	commandFlags(c, &command, &env)
	return c
}

func commandFlags(c *cobra.Command, command *kernel.Command, env *[]string) {
	c.Flags().StringVarP(&command.User, "user", "u", "", "as `USER[:GROUP]`, names or numbers of the machine's")
	c.Flags().StringVarP(&command.Cwd, "cwd", "w", "", "in `DIRECTORY` of the machine")
	c.Flags().StringArrayVarP(env, "env", "e", nil, "with `NAME=VALUE` in the environment; may be repeated")
}

// execArgs takes MACHINE [FLAG…] [--] COMMAND [ARG…] apart: flags are read until the command begins.
func execArgs(c *cobra.Command, args []string) (machine string, argv []string, err error) {
	if len(args) == 0 {
		return "", nil, usage(c, "got no machine")
	}
	if err := c.Flags().Parse(args[1:]); err != nil {
		return "", nil, usage(c, "%v", err)
	}
	if argv = c.Flags().Args(); len(argv) == 0 && c.Name() == "exec" {
		return "", nil, usage(c, "got no command for %s", args[0])
	}
	return args[0], argv, nil
}

func parseEnv(c *cobra.Command, list []string) (map[string]string, error) {
	env := map[string]string{}
	for _, s := range list {
		name, value, ok := strings.Cut(s, "=")
		if !ok || name == "" {
			return nil, usage(c, "-e: got %q, want NAME=VALUE", s)
		}
		env[name] = value
	}
	return env, nil
}

func (a *app) exec(c *cobra.Command, machine string, command *kernel.Command) error {
	h, err := a.rootHost(c)
	if err != nil {
		return err
	}
	m, err := h.Find(machine)
	if err != nil {
		return err
	}
	defer m.Close()
	var code int
	if isTerminal(a.stdin) && isTerminal(a.stdout) {
		code, err = a.onTerminal(m, command)
	} else {
		code, err = a.onStreams(m, command)
	}
	if err != nil {
		return a.notRun(err)
	}
	if code != 0 {
		return exitStatus(code)
	}
	return nil
}

// notRun tells an error of the way in, which is msh's and exits with 1, from a program that could not be executed.
func (a *app) notRun(err error) error {
	code := kernel.ExitCode(err)
	if code == 1 {
		return err
	}
	fmt.Fprint(a.stderr, "msh: "+interp.Format(err, nil))
	return exitStatus(code)
}

// onStreams runs the command on msh's own descriptors; signals are the command's.
func (a *app) onStreams(m *kernel.Machine, command *kernel.Command) (int, error) {
	var stdio [3]int
	for i, stream := range []any{a.stdin, a.stdout, a.stderr} {
		f, ok := stream.(*os.File)
		if !ok {
			return 0, fmt.Errorf("stream %d is not a file", i)
		}
		stdio[i] = int(f.Fd())
	}
	caught := make(chan os.Signal, 16)
	signal.Notify(caught, unlessNohup(syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT)...)
	defer signal.Stop(caught)
	passed := make(chan syscall.Signal)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case sig := <-caught:
				select {
				case passed <- sig.(syscall.Signal):
				case <-ended:
					return
				}
			case <-ended:
				return
			}
		}
	}()
	return m.Attach(context.Background(), command, stdio, passed)
}
