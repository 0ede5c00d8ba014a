package tumbler_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	tumbler "tumbler.dev/go"
)

func Example() {
	verifier, err := tumbler.NewVerifier("127.0.0.1:50051", tumbler.WithAPIKey(os.Getenv("TUMBLER_API_KEY")))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	found, err := verifier.Verify(context.Background(), "the presented key", tumbler.RequireScopes("orders:read"))
	switch {
	case err != nil:
		fmt.Println("nothing was decided: deny, or try again:", err)
	case found.Valid:
		fmt.Println("let it pass, on behalf of", found.OwnerID)
	default:
		fmt.Println("deny; the log may know that it is", found.Code)
	}
}

func ExampleWithCredentials() {
	verifier, err := tumbler.NewVerifier("tumbler.example.com:443",
		tumbler.WithAPIKey(os.Getenv("TUMBLER_API_KEY")),
		tumbler.WithCredentials(credentials.NewTLS(nil)), // trusts the system's roots
	)
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()
}

func ExampleMiddleware() {
	verifier, err := tumbler.NewVerifier("127.0.0.1:50051", tumbler.WithAPIKey(os.Getenv("TUMBLER_API_KEY")))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	orders := func(w http.ResponseWriter, r *http.Request) {
		if caller, ok := tumbler.FromContext(r.Context()); ok {
			fmt.Fprintln(w, "the orders of", caller.OwnerID)
		}
	}
	readOrders := tumbler.Middleware(verifier, tumbler.RequireScopes("orders:read"))
	http.Handle("GET /orders", readOrders(http.HandlerFunc(orders)))
	log.Print(http.ListenAndServe("127.0.0.1:8080", nil))
}

func ExampleUnaryServerInterceptor() {
	verifier, err := tumbler.NewVerifier("127.0.0.1:50051", tumbler.WithAPIKey(os.Getenv("TUMBLER_API_KEY")))
	if err != nil {
		log.Fatal(err)
	}
	defer verifier.Close()

	guard := []tumbler.GRPCOption{
		tumbler.ExemptMethods("/grpc.health.v1.Health/Check"),
		tumbler.ScopesByMethod(func(fullMethod string) ([]string, bool) {
			scopes, known := map[string][]string{
				"/shop.v1.Orders/List":  {"orders:read"},
				"/shop.v1.Orders/Place": {"orders:write"},
			}[fullMethod]
			return scopes, known
		}),
	}
	grpc.NewServer(
		grpc.UnaryInterceptor(tumbler.UnaryServerInterceptor(verifier, guard...)),
		grpc.StreamInterceptor(tumbler.StreamServerInterceptor(verifier, guard...)),
	)
}
