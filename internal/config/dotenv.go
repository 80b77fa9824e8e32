package config

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/joho/godotenv"
)

const dotenv = ".env"

// ReadDotenv adds the variables of the file .env in the current directory, if there is one, to the environment. A
// variable that the environment has already keeps its value, unless that is empty. Afterwards it unsets those
// variables of Config that are set to nothing. The error of a malformed file, or of one with names that are probably
// misspelled, is one line without any of its values.
func ReadDotenv() error {
	content, err := os.ReadFile(dotenv)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the configuration: %w", err)
	}
	vars, err := parseDotenv(content)
	if err != nil {
		return err
	}
	if wrong := misspelled(slices.Collect(maps.Keys(vars))); len(wrong) > 0 {
		return fmt.Errorf("%s: %s: correct or remove it", dotenv, strings.Trim(fmt.Sprint(wrong), "[]"))
	}
	for key, value := range vars {
		if os.Getenv(key) != "" {
			continue
		}
		if err := os.Setenv(key, value); err != nil {
			return fmt.Errorf("%s: set %q: %w", dotenv, key, err)
		}
	}
	return unsetEmpty()
}

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// parseDotenv reads the variables of a .env file. Its error says which line is wrong.
func parseDotenv(content []byte) (map[string]string, error) {
	vars, ok := tryDotenv(content)
	if ok {
		return vars, nil
	}
	// The line that is wrong is the last one that turns a file that can be read into one that cannot.
	lines := bytes.SplitAfter(content, []byte("\n"))
	n := len(lines)
	for n > 1 {
		if _, ok := tryDotenv(bytes.Join(lines[:n-1], nil)); ok {
			break
		}
		n--
	}
	return nil, fmt.Errorf("%s: line %d is not NAME=value, or has a quote that is not closed", dotenv, n)
}

// tryDotenv reports whether content can be read, and not why: godotenv's error quotes the rest of the file.
func tryDotenv(content []byte) (map[string]string, bool) {
	vars, err := godotenv.UnmarshalBytes(content)
	if err != nil {
		return nil, false
	}
	for key := range vars {
		// godotenv lets spaces through, and gives a last line without "=" the name "".
		if !variableName.MatchString(key) {
			return nil, false
		}
	}
	return vars, true
}

// unsetEmpty unsets the variables of Config that are set to nothing.
func unsetEmpty() error {
	for _, field := range variables {
		if value, set := os.LookupEnv(name(field)); !set || value != "" {
			continue
		}
		if err := os.Unsetenv(name(field)); err != nil {
			return fmt.Errorf("unset %s: %w", name(field), err)
		}
	}
	return nil
}
