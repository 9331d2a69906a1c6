package interp

// ownWords returns the words that the interpreter itself brings.
func ownWords() []*Word {
	return []*Word{
		assumeWord(),
		catchWord(),
		deferWord(),
		expectContains(),
		expectEq(),
		expectEventually(),
		expectFails(),
		expectMatches(),
		expectNe(),
		expectTrue(),
		getenvWord(),
		helpWord(),
		parallelWord(),
		sleepWord(),
	}
}
