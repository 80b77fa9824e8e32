package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// Misspelling is a variable that nothing reads, with a name close to that of a setting.
type Misspelling struct {
	Variable string
	// Meant is the setting that comes closest.
	Meant string
}

// String is the text of a warning.
func (m Misspelling) String() string {
	return fmt.Sprintf("%s is no setting (is %s meant?)", m.Variable, m.Meant)
}

// Misspelled lists the variables of the environment that are probably meant to be settings, by name.
func Misspelled() []Misspelling {
	var names []string
	for _, pair := range os.Environ() {
		name, _, _ := strings.Cut(pair, "=")
		names = append(names, name)
	}
	return misspelled(names)
}

// maxDistance is how many letters may be missing, too many or wrong in a misspelled name.
const maxDistance = 2

func misspelled(names []string) (found []Misspelling) {
	slices.Sort(names)
	for _, variable := range names {
		if known(variable) {
			continue
		}
		meant, distance := "", maxDistance+1
		for _, field := range variables {
			if d := levenshtein.ComputeDistance(strings.ToUpper(variable), name(field)); d < distance {
				meant, distance = name(field), d
			}
		}
		if meant != "" {
			found = append(found, Misspelling{variable, meant})
		}
	}
	return found
}

// known reports whether somebody reads the variable: the service, docker-compose.yml, OpenTelemetry or the image of
// PostgreSQL.
func known(variable string) bool {
	ours := slices.ContainsFunc(variables, func(field reflect.StructField) bool { return name(field) == variable })
	return ours || slices.Contains([]string{"PUBLISH_HOST", "PUBLISH_PORT", "VERSION", "COMMIT"}, variable) ||
		strings.HasPrefix(variable, "OTEL_") || strings.HasPrefix(variable, "POSTGRES_")
}
