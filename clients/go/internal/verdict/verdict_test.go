package verdict_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"tumbler.dev/go/internal/verdict"
)

func TestEveryVectorIsDecidedAsItSays(t *testing.T) {
	content, err := os.ReadFile("../../../../tests/vectors/verify.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name string `json:"name"`
			Code string `json:"code"`
			verdict.Vector
		} `json:"vectors"`
	}
	if err := json.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 150 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	for _, v := range file.Vectors {
		t.Run(v.Name, func(t *testing.T) {
			code := v.Decide()
			if got := strings.TrimPrefix(code.String(), "VERIFY_CODE_"); got != v.Code {
				t.Errorf("decided %s, want %s", got, v.Code)
			}
		})
	}
}

func TestANetworkThatCannotBeReadLetsNobodyIn(t *testing.T) {
	record := &verdict.Record{
		Networks:        verdict.Networks([]string{"not a network"}),
		ExpireTime:      verdict.Never,
		GraceExpireTime: verdict.Never,
	}
	for _, address := range []string{"192.0.2.7", "2001:db8::1", ""} {
		code := verdict.Decide(record, &verdict.Demand{ClientIP: address}, 0)
		if code.String() != "VERIFY_CODE_IP_NOT_ALLOWED" {
			t.Errorf("%q: %s", address, code)
		}
	}
}

func TestANetworkWrittenAsAnAddressIsThatAddressAlone(t *testing.T) {
	record := &verdict.Record{
		Networks:        verdict.Networks([]string{"192.0.2.7", "2001:db8::7"}),
		ExpireTime:      verdict.Never,
		GraceExpireTime: verdict.Never,
	}
	for address, want := range map[string]string{
		"192.0.2.7":   "VERIFY_CODE_VALID",
		"192.0.2.8":   "VERIFY_CODE_IP_NOT_ALLOWED",
		"2001:db8::7": "VERIFY_CODE_VALID",
		"2001:db8::8": "VERIFY_CODE_IP_NOT_ALLOWED",
	} {
		if code := verdict.Decide(record, &verdict.Demand{ClientIP: address}, 0); code.String() != want {
			t.Errorf("%s: %s", address, code)
		}
	}
}
