package keyformat_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"tumbler.dev/go/keyformat"
)

type vector struct {
	Name       string          `json:"name"`
	Key        json.RawMessage `json:"key"`
	WellFormed bool            `json:"well_formed"`
	Prefix     string          `json:"prefix"`
	ID         string          `json:"id"`
}

// text returns the vector's key, which is either a text or {"repeat": [text, n]}.
func (v vector) text(t *testing.T) string {
	t.Helper()
	var text string
	if json.Unmarshal(v.Key, &text) == nil {
		return text
	}
	var form struct {
		Repeat [2]json.RawMessage `json:"repeat"`
	}
	var times int
	for _, err := range []error{
		json.Unmarshal(v.Key, &form),
		json.Unmarshal(form.Repeat[0], &text),
		json.Unmarshal(form.Repeat[1], &times),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return strings.Repeat(text, times)
}

func vectors(t *testing.T) []vector {
	t.Helper()
	content, err := os.ReadFile("../../../tests/vectors/keyformat.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []vector `json:"vectors"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 50 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	return file.Vectors
}

func TestEveryVectorIsParsedAsItSays(t *testing.T) {
	for _, v := range vectors(t) {
		t.Run(v.Name, func(t *testing.T) {
			text := v.text(t)
			key, err := keyformat.Parse(text)
			if got := err == nil; got != v.WellFormed {
				t.Fatalf("well formed: %v", got)
			}
			if key.Prefix != v.Prefix || key.ID != v.ID {
				t.Errorf("got %+v", key)
			}
			if keyformat.WellFormed(text) != v.WellFormed {
				t.Error("WellFormed disagrees with Parse")
			}
		})
	}
}

func TestThePatternFindsEveryWellFormedKeyInOtherText(t *testing.T) {
	for _, v := range vectors(t) {
		if v.WellFormed {
			text := v.text(t)
			if found := keyformat.Pattern.FindString("key=" + text + ", seen in a log"); found != text {
				t.Errorf("%s: found %q", v.Name, found)
			}
		}
	}
}

func TestAnErrorShowsNothingOfTheKey(t *testing.T) {
	for _, v := range vectors(t) {
		if _, err := keyformat.Parse(v.text(t)); err != nil && err.Error() != keyformat.ErrMalformed.Error() {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
}

func FuzzParseNeverFailsOtherwiseAndAcceptsOnlyWhatThePatternMatches(f *testing.F) {
	f.Add("tmb_0123456789abcdef_" + strings.Repeat("0", 43) + "1xoimV")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if keyformat.WellFormed(text) && keyformat.Pattern.FindString(text) != text {
			t.Errorf("accepted %q", text)
		}
	})
}
