// The service's routes, shown and tried by Swagger UI, with the key that the page asked for.

import { KEY } from "./service.js";

function authorize(request) {
  const key = sessionStorage.getItem(KEY);
  if (key) request.headers.Authorization = `Bearer ${key}`;
  return request;
}

const { status } = await fetch("/openapi.json", authorize({ headers: {} }));
if (status === 401) {
  const form = document.getElementById("access");
  form.hidden = false;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, document.getElementById("key").value.trim());
    location.reload();
  });
} else {
  window.SwaggerUIBundle({ url: "/openapi.json", dom_id: "#routes", requestInterceptor: authorize, validatorUrl: null });
}
