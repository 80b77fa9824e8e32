package config

import (
	"os"
	"strings"
	"testing"
)

// inDirWith makes a directory with the .env file the current one.
func inDirWith(t *testing.T, content string) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile(dotenv, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDotenvPrecedence(t *testing.T) {
	for _, tt := range []struct {
		outcome, file string
		real          map[string]string
		want          map[string]string // "" is not set
	}{
		{"file fills what is not set", "SERVICE_PORT=1\n", nil, map[string]string{"SERVICE_PORT": "1"}},
		{"environment wins", "SERVICE_PORT=1\n", map[string]string{"SERVICE_PORT": "2"}, map[string]string{"SERVICE_PORT": "2"}},
		{"file wins over nothing", "SERVICE_PORT=1\n", map[string]string{"SERVICE_PORT": ""}, map[string]string{"SERVICE_PORT": "1"}},
		{"nothing in both is not set", "SERVICE_PORT=\n", map[string]string{"SERVICE_PORT": ""}, map[string]string{"SERVICE_PORT": ""}},
		{"nothing in the file is not set", "SERVICE_PORT=", nil, map[string]string{"SERVICE_PORT": ""}},
		{"variables of others are set too", "PGHOST=h\n", nil, map[string]string{"PGHOST": "h"}},
		{
			"quotes, comments, export and line ends are understood",
			"# c\r\nexport SERVICE_HOST=\"::1\" # c\r\n\r\nLOG_FORMAT='json'\r\nSERVICE_PORT=1 # c\r\n",
			nil,
			map[string]string{"SERVICE_HOST": "::1", "LOG_FORMAT": "json", "SERVICE_PORT": "1"},
		},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			setenv(t, tt.real)
			inDirWith(t, tt.file)
			if err := ReadDotenv(); err != nil {
				t.Fatal(err)
			}
			for key, want := range tt.want {
				if got, set := os.LookupEnv(key); got != want || set != (want != "") {
					t.Errorf("%s is %q (set: %v), want %q", key, got, set, want)
				}
			}
		})
	}
}

func TestDotenvMissingIsNoError(t *testing.T) {
	setenv(t, map[string]string{"SERVICE_PORT": ""})
	t.Chdir(t.TempDir())
	if err := ReadDotenv(); err != nil {
		t.Fatal(err)
	}
	if _, set := os.LookupEnv("SERVICE_PORT"); set {
		t.Error("SERVICE_PORT is still set to nothing")
	}
}

func TestDotenvRefused(t *testing.T) {
	for _, tt := range []struct{ outcome, file, want string }{
		{"quote not closed", "A=1\nDATABASE_URL=\"postgresql://u:S3CR3T@h/d\nB=2\n", "line 2 "},
		{"no equals sign", "A=1\n\nS3CR3T\nB=2\n", "line 3 "},
		{"no equals sign at the end", "A=1\nS3CR3T", "line 2 "},
		{"no name", "=S3CR3T\n", "line 1 "},
		{"space in the name", "A=1\nMY S3CR3T=x\n", "line 2 "},
		{"bad character in the name", "A=1\nB=2\nPASS-WORD=S3CR3T\nC=3\n", "line 3 "},
		{"text after a quoted value", "A='x'S3CR3T\nB=2\n", "line 1 "},
		{"bad line after a value of two lines", "A=\"x\ny\"\n!S3CR3T\n", "line 3 "},
		{"NUL in a value", "A=S3CR3T\x00\n", `set "A"`},
	} {
		t.Run(tt.outcome, func(t *testing.T) {
			setenv(t, nil)
			inDirWith(t, tt.file)
			err := ReadDotenv()
			if err == nil {
				t.Fatal("got no error")
			}
			if got := err.Error(); !strings.HasPrefix(got, ".env: "+tt.want) || strings.Contains(got, "\n") || strings.Contains(got, secret) {
				t.Errorf("got %q, want one line about %s", got, tt.want)
			}
		})
	}
	t.Run("directory", func(t *testing.T) {
		setenv(t, nil)
		t.Chdir(t.TempDir())
		if err := os.Mkdir(dotenv, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := ReadDotenv(); err == nil || !strings.Contains(err.Error(), ".env") {
			t.Errorf("got %v, want an error that names the file", err)
		}
	})
}
