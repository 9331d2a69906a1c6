package interp

import (
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/chzyer/readline"
	"golang.org/x/term"
)

// historyLines is how many lines the history file keeps.
const historyLines = 5000

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// newTerminal returns a LineReader with editing, history and completion.
// It reads the terminal only while a line is asked for, so what a machine's shell is typed goes to the shell.
func (in *Interp) newTerminal(stdin *os.File) (LineReader, error) {
	cfg := &readline.Config{
		Prompt:       prompt,
		Stdin:        readline.NewCancelableStdin(stdin),
		Stdout:       in.opts.Stdout,
		Stderr:       in.opts.Stderr,
		HistoryLimit: historyLines,
		AutoComplete: completer{in},
		EOFPrompt:    "\n", // readline takes it for "nothing"
	}
	path, err := historyFile()
	if err != nil {
		// A session without its history is better than none.
		fmt.Fprintf(in.opts.Stderr, "msh: no history: %v\n", err)
	}
	cfg.HistoryFile = path
	lines, err := readline.NewEx(cfg)
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	return lines, nil
}

// historyFile returns the path of the history, whose folder it makes.
func historyFile() (string, error) {
	state := os.Getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(state) { // the XDG base directory specification has relative paths ignored
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("find history: %w", err)
		}
		state = filepath.Join(home, ".local", "state")
	}
	dir := filepath.Join(state, "msh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make folder for history: %w", err)
	}
	return filepath.Join(dir, "history"), nil
}

// completer is readline's view of Complete.
type completer struct{ in *Interp }

// Do returns the endings that the word before pos may have, and how much of it there is.
func (c completer) Do(line []rune, pos int) (endings [][]rune, length int) {
	typed := string(line[:pos])
	words, n := c.in.Complete(typed)
	for _, w := range words {
		endings = append(endings, []rune(w[n:]))
	}
	return endings, utf8.RuneCountInString(typed[len(typed)-n:])
}
