// Command verify says whether a webhook is signed with a secret: it reads {secret, headers, body} and answers
// {"ok": true} or false.
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func main() {
	var asked struct {
		Secret  string
		Headers map[string]string
		Body    string
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		log.Fatal("the input is not what it should be")
	}
	headers := http.Header{}
	for name, value := range asked.Headers {
		headers.Set(name, value)
	}
	webhook, err := standardwebhooks.NewWebhook(asked.Secret)
	if err != nil {
		log.Fatal("the secret is of no such form")
	}
	ok := webhook.Verify([]byte(asked.Body), headers) == nil
	if err := json.NewEncoder(os.Stdout).Encode(map[string]bool{"ok": ok}); err != nil {
		log.Fatal(err)
	}
}
