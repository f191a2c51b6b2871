package cli

import (
	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// acmeFlags say where certificates come from.
type acmeFlags struct {
	directory, caFile, email, keyID, keyFile string
	agree                                    bool
	server, dnsKey, algorithm, dnsKeyFile    string
}

func (f *acmeFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.directory, "acme-directory", "", "the https URL of the ACME directory that certificates come from; \"\" for Let's Encrypt")
	flags.StringVar(&f.caFile, "acme-ca-file", "", "a file on the host with the certificates that the directory's own is checked with")
	flags.StringVar(&f.email, "acme-email", "", "an address that the authority is told")
	flags.BoolVar(&f.agree, "acme-agree-terms", false, "agree to the authority's terms; domains with --terminate need it")
	flags.StringVar(&f.keyID, "acme-eab-key-id", "", "the name of the key that the authority gave for its accounts")
	flags.StringVar(&f.keyFile, "acme-eab-key-file", "", "a file on the host with that key")
	flags.StringVar(&f.server, "acme-dns-server", "", "a DNS server that takes dynamic updates, HOST or HOST:PORT; suffixes with --terminate need it")
	flags.StringVar(&f.dnsKey, "acme-dns-key-name", "", "the name of the key that updates are signed with")
	flags.StringVar(&f.algorithm, "acme-dns-algorithm", "", "how updates are signed: hmac-sha256, hmac-sha224, hmac-sha384, hmac-sha512")
	flags.StringVar(&f.dnsKeyFile, "acme-dns-key-file", "", "a file on the host with that key")
	for _, flag := range []string{"acme-directory", "acme-email", "acme-eab-key-id", "acme-dns-server", "acme-dns-key-name"} {
		fixedCompletion(cmd, flag)
	}
	fixedCompletion(cmd, "acme-dns-algorithm", vps.DNSAlgorithms()...)
}

func (f *acmeFlags) update(cmd *cobra.Command) api.UpdateACME {
	return api.UpdateACME{
		Directory: given(cmd, "acme-directory", f.directory), CAFile: given(cmd, "acme-ca-file", f.caFile), Email: given(cmd, "acme-email", f.email),
		AgreeTerms: given(cmd, "acme-agree-terms", f.agree), EABKeyID: given(cmd, "acme-eab-key-id", f.keyID), EABKeyFile: given(cmd, "acme-eab-key-file", f.keyFile),
		DNSServer: given(cmd, "acme-dns-server", f.server), DNSKeyName: given(cmd, "acme-dns-key-name", f.dnsKey),
		DNSAlgorithm: given(cmd, "acme-dns-algorithm", f.algorithm), DNSKeyFile: given(cmd, "acme-dns-key-file", f.dnsKeyFile),
	}
}
