// Command orders is behind API keys: net/http and one middleware.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"time"

	tumbler "tumbler.dev/go"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Getenv("PORT"))
	if err != nil {
		log.Fatal(err)
	}
	verifier, err := tumbler.NewVerifier(os.Getenv("TUMBLER_ENDPOINT"), tumbler.WithAPIKey(os.Getenv("TUMBLER_API_KEY")))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	guarded := tumbler.Middleware(verifier, tumbler.RequireScopes("orders:read"))
	http.Handle("GET /orders", guarded(http.HandlerFunc(orders)))

	fmt.Println("listening on http://" + listener.Addr().String())
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second}
	log.Print(server.Serve(listener))
}

func orders(w http.ResponseWriter, r *http.Request) {
	caller, _ := tumbler.FromContext(r.Context())
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(map[string]any{"orders": []string{}, "owner": caller.OwnerID}); err != nil {
		log.Print(err)
	}
}
