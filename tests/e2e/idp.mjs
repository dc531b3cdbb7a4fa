// A certified OpenID Connect provider for the tests, new keys at each start:
//   node idp.mjs PORT PATH-OF-OIDC-PROVIDER
// Resource urn:tidegate gives signed tokens for the audience tidegate, urn:tidegate:opaque opaque ones.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { pathToFileURL } from 'node:url';

const [port, home] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(home));
const issuer = `http://127.0.0.1:${port}`;

function key() {
  const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
  return { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };
}

const provider = new Provider(issuer, {
  clients: [
    { client_id: 'svc-batch', client_secret: 's3cret-s3cret', grant_types: ['client_credentials'], response_types: [], redirect_uris: [] },
    {
      client_id: 'tg-cli', token_endpoint_auth_method: 'none', application_type: 'native', redirect_uris: ['http://127.0.0.1/cb'],
      response_types: ['code'],
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
    },
    { client_id: 'gate', client_secret: 'gate-gate-gate', grant_types: [], response_types: [], redirect_uris: [] },
  ],
  cookies: { keys: ['not a secret'] },
  jwks: { keys: [key()] },
  pkce: { required: () => true },
  findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, groups: ['ml-eng'] }) }),
  extraTokenClaims: () => ({ groups: ['ml-eng'] }),
  issueRefreshToken: async () => true,
  ttl: { AccessToken: 600, ClientCredentials: 600 },
  features: {
    clientCredentials: { enabled: true },
    deviceFlow: { enabled: true },
    devInteractions: { enabled: true },
    dPoP: { enabled: true },
    introspection: { enabled: true, allowedPolicy: (_, client) => client.clientId === 'gate' },
    revocation: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: (_, resource) => ({
        scope: 'llm',
        audience: 'tidegate',
        ...(resource === 'urn:tidegate:opaque'
          ? { accessTokenFormat: 'opaque' }
          : { accessTokenFormat: 'jwt', jwt: { sign: { alg: 'RS256' } } }),
      }),
    },
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));
