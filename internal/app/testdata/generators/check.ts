// Compiles when the clients made by openapi-typescript, hey-api and orval can be called as people call them.
import createClient from 'openapi-fetch';
import type { components, paths } from './openapi-typescript/schema';
import { consumeTokens, reserveTokens, type Problem } from './hey-api';
import { consumeTokens as consumeByOrval, reserveTokens as reserveByOrval } from './orval-fetch/api';
import { consumeTokensBody } from './orval-zod/api';

const id = 'test-user-123';

export async function byOpenAPIFetch(): Promise<number> {
  const client = createClient<paths>({ baseUrl: 'http://127.0.0.1:8001' });
  const params = { path: { cognito_user_id: id } };
  const { data, error } = await client.POST('/user/{cognito_user_id}/consume-tokens', { params, body: {} });
  if (error) {
    const problem: components['schemas']['Problem'] = error;
    throw new Error(problem.detail);
  }
  await client.POST('/user/{cognito_user_id}/reservations', { params, body: { tokens: 10 } });
  const tier: components['schemas']['TierName'] = data.subscription_tier;
  return data.tokens_remaining + tier.length;
}

export async function byHeyAPI(): Promise<number> {
  const { data, error } = await consumeTokens({ path: { cognito_user_id: id }, body: {} });
  if (error) {
    const problem: Problem = error;
    throw new Error(problem.detail);
  }
  await reserveTokens({ path: { cognito_user_id: id }, body: { tokens: 10 } });
  return data!.tokens_remaining;
}

export async function byOrval(): Promise<string> {
  await reserveByOrval(id, { tokens: 10 });
  const answer = await consumeByOrval(id, consumeTokensBody.parse({}));
  return answer.status === 200 ? answer.data.subscription_tier : answer.data.code;
}
